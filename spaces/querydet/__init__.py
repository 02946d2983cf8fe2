"""QueryDet: coarse levels say where small objects are, finer levels are computed only there."""
