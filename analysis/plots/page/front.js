"use strict";
// Draws the data of analysis/plots/page/data.py. No library but plotly.js; no request but for news from MLflow itself.
(() => {
  const INK = "#222222", FAINT = "#555555", GREY = "#9A9A9A", BLUE = "#0072B2", VERMILION = "#D55E00", SHADE = "#F3E3DA";
  // Okabe and Ito, without the baseline's vermilion; shapes tell the same.
  const LOOKS = [
    [BLUE, "circle"], ["#E69F00", "square"], ["#009E73", "diamond"], ["#CC79A7", "triangle-up"],
    ["#56B4E9", "triangle-down"], ["#000000", "cross"], ["#F0E442", "pentagon"],
  ];
  const REST = [GREY, "hexagon"];
  const STATES = {
    RUNNING: "circle-open", STOPPED: "triangle-down-open", FAILED: "x-open", INFEASIBLE: "square-open",
    PROPOSED: "diamond-open",
  };
  const PAPERS = {
    slimhead: "asterisk-open", ddod: "cross-thin-open", querydet: "x-thin-open", keyparts: "hash-open",
    pod: "y-up-open",
  };
  const CELL = 5; // px: half of the smallest marker
  const MANY = 1000; // points; more are drawn with WebGL where a GPU does it
  const SMALLEST = 10, LARGEST = 24; // px
  const ORDER = "#";
  const NEWS = 10000, PATIENCE = 4; // ms, and attempts

  const $ = (id) => document.getElementById(id);
  const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[c]);
  const plot = $("plot");
  const framed = location.protocol === "blob:"; // MLflow shows an artifact as a blob in a sandbox
  const webgl = (() => {
    try {
      const context = document.createElement("canvas").getContext("webgl", {failIfMajorPerformanceCaveat: true});
      const told = context.getExtension("WEBGL_debug_renderer_info");
      // Without a GPU it is slower than SVG.
      return !/swiftshader|llvmpipe|software/i.test(told ? context.getParameter(told.UNMASKED_RENDERER_WEBGL) : "");
    } catch { return false; }
  })();

  let data = JSON.parse($("data").textContent);
  const view = {x: null, y: null, colour: "state", published: "", others: false, unit: "trials", at: null, tab: "pair", pinned: null};

  // A frame of MLflow leaves little room, a projector wants large letters.
  const narrow = matchMedia("(max-width: 800px)");
  const letters = (large, small) => (narrow.matches ? small : large);

  // Words.

  const number = (value, digits) =>
    value.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  const figure = (name, value) => {
    const {label, unit, scale, digits} = data.metrics[name];
    return value === null ? `${label} not measured` : `${label} ${number(value * scale, digits)} ${unit}`.trim();
  };
  const axis = (name) => {
    const {label, unit} = data.metrics[name];
    return unit ? `${label} (${unit})` : label;
  };
  const value = (name, index) => data.points.metrics[name][index];
  const scaled = (name, index) => value(name, index) * data.metrics[name].scale;
  const more = (name) => data.metrics[name].more;

  // Who is where, at a time: T counts finished trials.

  const all = () => data.finished.hours.length;
  const when = () => (view.at === null ? all() : view.at);
  const present = (index, T) => data.points.at[index] !== null && data.points.at[index] <= T;
  const valid = (index, T) => data.points.valid[index] && present(index, T);
  const member = (index, T) => {
    const {came, left} = data.points;
    return came[index] !== null && came[index] <= T && (left[index] === null || left[index] > T);
  };
  const measured = (index) => value(view.x, index) !== null && value(view.y, index) !== null;
  const baseline = (T) => {
    const index = data.points.label.indexOf("0");
    return index >= 0 && valid(index, T) && measured(index) ? index : -1;
  };

  function frontOfTwo(indices) {
    // Ascending in x; equal points stand once.
    if (more(view.x) === null || more(view.y) === null) return [];
    const sx = more(view.x) ? -1 : 1, sy = more(view.y) ? -1 : 1;
    const order = [...indices].sort((a, b) => sx * (value(view.x, a) - value(view.x, b)) || sy * (value(view.y, a) - value(view.y, b)));
    const kept = [];
    for (const index of order) {
      if (!kept.length || sy * value(view.y, index) < sy * value(view.y, kept[kept.length - 1])) kept.push(index);
    }
    return sx < 0 ? kept.reverse() : kept;
  }

  function ofObjectives() {
    const names = data.objectives.map((objective) => objective.metric);
    return names.length === 2 && names.includes(view.x) && names.includes(view.y);
  }

  // Looks.

  function sizes() {
    const column = data.points.metrics[data.size];
    if (!column) return null;
    const numbers = column.filter((size, index) => size !== null && data.points.valid[index]);
    const low = Math.min(...numbers), high = Math.max(...numbers);
    return numbers.length && high - low > 1e-6 * high ? {low, high} : null;
  }
  function diameter(size, range) {
    if (range === null) return 14;
    if (size === null) return SMALLEST;
    const share = Math.min(1, Math.max(0, (size - range.low) / (range.high - range.low)));
    return SMALLEST + (LARGEST - SMALLEST) * Math.sqrt(share);
  }
  function look(index, T) {
    if (view.colour === "state") return member(index, T) ? [BLUE, "circle"] : [GREY, "circle"];
    return LOOKS[data.points.design[index]] || REST;
  }

  function thinned(indices, ranges, T) {
    // Of points that look alike and lie within one cell of the screen, one is drawn.
    const width = Math.max(200, plot.clientWidth - 130), height = Math.max(200, plot.clientHeight - 150);
    const [left, right] = ranges.x, [bottom, top] = ranges.y;
    const seen = new Set(), kept = [];
    for (const index of indices) {
      const column = Math.floor(((scaled(view.x, index) - left) / (right - left)) * (width / CELL));
      const row = Math.floor(((scaled(view.y, index) - bottom) / (top - bottom)) * (height / CELL));
      const kind = view.colour === "state" ? 0 : Math.min(data.points.design[index], LOOKS.length);
      const key = (row * 1e5 + column) * 8 + kind;
      if (!seen.has(key)) { seen.add(key); kept.push(index); }
    }
    return kept;
  }

  // Bars.

  function quartiles(name, index) {
    if (name !== "latency_ms" && name !== "latency_ratio") return null;
    const names = ["latency_ratio", "latency_ratio_q1", "latency_ratio_q3"];
    if (!names.every((other) => data.points.metrics[other])) return null;
    const [middle, low, high] = names.map((other) => value(other, index));
    if (!middle || low === null || high === null) return null;
    const unit = value(name, index) / middle;
    return [Math.max(0, (middle - low) * unit), Math.max(0, (high - middle) * unit)];
  }
  function bars(name, indices, colour) {
    const found = indices.map((index) => quartiles(name, index));
    if (!found.some(Boolean)) return undefined;
    return {
      array: found.map((pair) => (pair ? pair[1] : 0)), arrayminus: found.map((pair) => (pair ? pair[0] : 0)),
      thickness: 1.5, width: 4, color: colour,
    };
  }
  function interval(name, index) {
    const found = data.confirmed[index];
    const own = found && found.intervals[name];
    return own ? own.map((end) => end * data.metrics[name].scale) : null;
  }

  // Published points, onto our baseline.

  function published(T) {
    const base = baseline(T);
    if (!view.published || base < 0) return [];
    return data.published
      .filter((row) => (view.published === "all" || row.paper === view.published) && row.ratios[view.x] && row.ratios[view.y])
      .map((row) => ({row, x: scaled(view.x, base) * row.ratios[view.x], y: scaled(view.y, base) * row.ratios[view.y]}));
  }

  // The drawing.

  function ranges(shown, extra) {
    const xs = shown.map((index) => scaled(view.x, index)), ys = shown.map((index) => scaled(view.y, index));
    const room = Math.max(...ys) - Math.min(...ys);
    for (const index of shown) {
      const own = data.confirmed[index] && interval(view.y, index);
      // Two seeds may leave an interval ten times as long as the front is high; it is cut at the frame.
      if (own && room) ys.push(Math.max(own[1], Math.min(...ys) - room), Math.min(own[2], Math.max(...ys) + room));
    }
    for (const point of extra) { xs.push(point.x); ys.push(point.y); }
    const padded = (numbers) => {
      if (!numbers.length) return [0, 1];
      const low = Math.min(...numbers), high = Math.max(...numbers);
      const pad = 0.08 * (high - low) || 0.1 * Math.abs(high) || 1;
      return [low - pad, high + pad];
    };
    return {x: padded(xs), y: padded(ys)};
  }

  function points(indices, extra) {
    return {
      x: indices.map((index) => scaled(view.x, index)), y: indices.map((index) => scaled(view.y, index)),
      customdata: indices, type: "scatter", mode: "markers", hoverinfo: "none", showlegend: false, ...extra,
    };
  }

  function tags(indices, range) {
    // Each one's number, or nothing where it would run into one before it.
    const wide = 0.03 * (range.x[1] - range.x[0]), high = 0.045 * (range.y[1] - range.y[0]), taken = [];
    return indices.map((index) => {
      const x = scaled(view.x, index), y = scaled(view.y, index);
      if (taken.some(([left, low]) => Math.abs(x - left) <= wide && Math.abs(y - low) <= high)) return "";
      taken.push([x, y]);
      return data.points.label[index];
    });
  }

  function legend(name, marker, extra) {
    return {x: [null], y: [null], type: "scatter", mode: "markers", name, hoverinfo: "skip", marker: {size: 14, ...marker}, ...extra};
  }

  function traces() {
    const T = when(), now = view.at === null, found = [], base = baseline(T);
    const complete = [], faint = [], front = [], others = [];
    data.points.label.forEach((label, index) => {
      if (!measured(index)) return;
      if (valid(index, T)) {
        complete.push(index);
        if (index !== base) (member(index, T) ? front : faint).push(index);
      } else if (view.others && data.points.state[index] !== "COMPLETE" && (present(index, T) || (now && data.points.at[index] === null))) {
        others.push(index);
      }
    });
    const laid = published(T);
    const everything = data.points.label.map((_, index) => index).filter((index) => measured(index) && valid(index, all()));
    const home = ranges([...everything, ...others], laid);
    const zoom = plot.layout && plot.layout.uirevision === revision() ? plot.layout : null;
    const range = zoom ? {x: zoom.xaxis.range, y: zoom.yaxis.range} : home;
    const size = sizes();
    const diameterOf = (index) => diameter(data.points.metrics[data.size] ? value(data.size, index) : null, size);
    const sized = (indices) => indices.map(diameterOf);
    if (size) {
      const column = data.points.metrics[data.size];
      faint.sort((a, b) => column[b] - column[a]); // small ones on top of large ones
    }
    const few = thinned(faint, range, T);

    const two = frontOfTwo(complete), whole = ofObjectives();
    if (two.length > 1) {
      found.push(points(two, {
        mode: "lines", hoverinfo: "skip", showlegend: !whole, name: "front over these two alone",
        line: {color: BLUE, width: whole ? 3 : 2, dash: whole ? "solid" : "dot", shape: more(view.x) ? "vh" : "hv"},
      }));
    }
    const classes = new Map();
    for (const [kind, indices] of [["faint", few], ["front", front]]) {
      for (const index of indices) {
        const key = view.colour === "state" ? kind : look(index, T)[1];
        if (!classes.has(key)) classes.set(key, {look: look(index, T), design: data.points.design[index], faint: [], front: []});
        classes.get(key)[kind].push(index);
      }
    }
    const named = [...classes.entries()].sort(([, a], [, b]) => a.design - b.design);
    for (const [key, group] of named) {
      const [colour, symbol] = group.look, many = group.faint.length > MANY && webgl;
      const state = view.colour === "state";
      found.push(points(group.faint, {
        type: many ? "scattergl" : "scatter", legendgroup: key,
        marker: {color: colour, symbol, size: sized(group.faint), opacity: state ? 0.45 : 0.55, line: {color: "white", width: 1}},
      }));
    }
    for (const [key, group] of named) {
      const [colour, symbol] = group.look;
      found.push(points(group.front, {
        legendgroup: key, error_x: bars(view.x, group.front, colour), error_y: bars(view.y, group.front, colour),
        marker: {color: colour, symbol, size: sized(group.front), opacity: 1, line: {color: INK, width: 2}},
      }));
    }
    found.push(points(front, {
      mode: "markers+text", hoverinfo: "skip", marker: {size: sized(front).map((size) => size + 6), opacity: 0}, text: tags(front, range), textfont: {size: letters(16, 12), color: INK},
      textposition: more(view.x) ? "top right" : "top left",
    }));
    if (others.length) {
      found.push(points(others, {
        marker: {
          symbol: others.map((index) => STATES[data.points.state[index]]), size: 12, color: FAINT, line: {color: FAINT, width: 2},
        },
      }));
    }
    for (const paper of new Set(laid.map(({row}) => row.paper))) {
      const own = laid.filter(({row}) => row.paper === paper);
      found.push({
        x: own.map(({x}) => x), y: own.map(({y}) => y), customdata: own.map(({row}) => row), type: "scatter", mode: "markers",
        hoverinfo: "none", name: `published: ${paper}`, marker: {symbol: PAPERS[paper] || "star-diamond-open", size: 13, color: INK, line: {color: INK, width: 2}},
      });
    }
    if (base >= 0) {
      found.push(points([base], {
        name: "baseline", showlegend: true, error_x: bars(view.x, [base], VERMILION),
        marker: {color: VERMILION, symbol: "star", size: 25, line: {color: INK, width: member(base, T) ? 2 : 0.5}},
      }));
    }
    const sure = [...front, ...(base >= 0 ? [base] : [])].filter((index) => interval(view.y, index));
    if (sure.length) {
      const ends = sure.map((index) => interval(view.y, index));
      found.push(points(sure, {
        y: ends.map((end) => end[0]), hoverinfo: "skip", name: "mean over seeds, 95 % interval", showlegend: true,
        marker: {symbol: "line-ew-open", size: 22, color: INK, line: {color: INK, width: 1.5}},
        error_y: {array: ends.map((end) => end[2] - end[0]), thickness: 1.5, width: 5, color: INK},
      }));
    }
    if (view.pinned !== null) {
      const index = data.points.label.indexOf(view.pinned);
      if (index >= 0 && measured(index)) {
        found.push(points([index], {hoverinfo: "skip", marker: {symbol: "circle-open", size: 36, color: INK, line: {color: INK, width: 3}}}));
      }
    }
    for (const [key, group] of named) {
      const [colour, symbol] = group.look;
      const name = view.colour === "state" ? (key === "front" ? "front" : "dominated") : data.designs[group.design] && LOOKS[group.design] ? data.designs[group.design] : "other combinations";
      const edge = key === "front" ? {color: INK, width: 2} : {color: "white", width: 1};
      found.push(legend(name, {color: colour, symbol, opacity: key === "faint" ? 0.45 : 1, line: edge}, {legendgroup: key}));
    }
    if (view.colour === "design" && front.length) {
      found.push(legend("dark edge: on the front", {color: "white", symbol: "circle", line: {color: INK, width: 2}}));
    }
    for (const state of new Set(others.map((index) => data.points.state[index]))) {
      found.push(legend(`${state.toLowerCase()}: never on the front`, {color: FAINT, symbol: STATES[state], line: {color: FAINT, width: 2}}));
    }
    return {found, home, base, front, faint, few, complete, laid};
  }

  function revision() { return [view.x, view.y, view.others, view.published].join(" "); }

  function draw() {
    if (view.tab === "matrix") return drawMatrix();
    const {found, home, base, front, faint, few, complete, laid} = traces();
    const edge = (name, range) => ({
      title: {text: more(name) === null ? axis(name) : `${axis(name)}, ${more(name) ? "more" : "less"} is better`, font: {size: letters(20, 14)}, standoff: letters(12, 6)},
      range, zeroline: false, automargin: true, gridcolor: "#E4E4E4", showticklabels: complete.length > 0, tickfont: {size: letters(17, 12)},
    });
    const shapes = [];
    if (base >= 0 && more(view.x) !== null && more(view.y) !== null) {
      const far = (name, range) => scaled(name, base) + (more(name) ? -20 : 20) * (range[1] - range[0]);
      shapes.push({
        type: "rect", layer: "below", fillcolor: SHADE, opacity: 0.6, line: {width: 0}, name: "the baseline dominates", showlegend: true,
        x0: scaled(view.x, base), x1: far(view.x, home.x), y0: scaled(view.y, base), y1: far(view.y, home.y),
      });
    }
    const missing = complete.length ? "" : data.points.valid.some(Boolean) ? "No figures of these two at this time." : "No trial is COMPLETE yet.<br>Only COMPLETE trials are on the front.";
    const alone = complete.length === 1 ? "One trial is COMPLETE so far." : missing;
    const layout = {
      shapes, uirevision: revision(), font: {size: letters(17, 12), color: INK, family: "Helvetica, Arial, DejaVu Sans, sans-serif"},
      xaxis: edge(view.x, home.x), yaxis: edge(view.y, home.y), hovermode: "closest", hoverdistance: 25,
      legend: {orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", itemsizing: "trace", font: {size: letters(16, 12)}},
      margin: {l: letters(80, 45), r: letters(25, 8), t: letters(40, 20), b: letters(70, 40)}, plot_bgcolor: "white", paper_bgcolor: "white",
      annotations: alone ? [{text: alone, x: 0.5, y: 0.9, xref: "paper", yref: "paper", showarrow: false, font: {size: letters(22, 15)}}] : [],
    };
    say(front.length + (base >= 0 && member(base, when()) ? 1 : 0), faint.length - few.length, laid.length);
    // plotly's own "share" button would upload the study to its makers' cloud.
    return Plotly.react(plot, found, layout, {
      responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", doubleClick: "reset",
      modeBarButtonsToRemove: ["lasso2d", "select2d"],
    });
  }

  function drawMatrix() {
    $("note").textContent = notes().join(" · ");
    // Its own title would lie on the plots here.
    const {title, ...rest} = data.matrix.layout;
    const hidden = /up to .* not drawn/.exec(title.text);
    $("said").textContent = ["The front over all objectives is marked in each", "drag to turn the view in space", ...(hidden || [])].join(" · ");
    return Plotly.react($("matrix"), data.matrix.data, {...rest, margin: {l: 80, r: 30, t: 50, b: 70}}, {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: ""});
  }

  function notes(members) {
    const told = [view.at === null ? data.counts : `as it was after ${view.at} of ${all()} trials`];
    if (members !== undefined) told.push(`${members} on the front`);
    const last = data.finished.ended.filter((end) => end !== null).pop();
    if (view.at === null && last) told.push(`newest trial ended ${new Date(1000 * last).toLocaleString()}`);
    if (framed && data.runs && data.runs.live) told.push(failures < PATIENCE ? "live" : "no longer live: reload the page");
    return told;
  }

  function say(members, hidden, laid) {
    $("note").textContent = notes(members).join(" · ");
    const parts = [], range = sizes();
    if (range) {
      const {label, unit, digits} = data.metrics[data.size];
      const ball = (size) => {
        const d = diameter(size, range);
        return `<svg width="${d}" height="${d}"><circle cx="${d / 2}" cy="${d / 2}" r="${d / 2 - 1}" fill="${GREY}"/></svg>${number(size, digits)} ${unit}`;
      };
      parts.push(`point size: ${escaped(label)} ${[range.low, (range.low + range.high) / 2, range.high].map(ball).join("")}`);
    }
    if (data.points.metrics.latency_ratio_q1 && [view.x, view.y].some((name) => name.startsWith("latency_"))) {
      parts.push("bars: quartiles of the measured latency");
    }
    if (laid) parts.push("published points: by their ratio to their own paper's baseline, laid onto ours; other data, other devices");
    else if (view.published) parts.push("no published points with both of these figures");
    if (hidden) parts.push(`${hidden.toLocaleString("en-US")} dominated points lie under others that look the same and are not drawn; zoom in to see them`);
    $("said").innerHTML = parts.join(" · ");
  }

  // A point's words.

  function details(index) {
    const T = when(), {label, state} = data.points, lines = [];
    const kind = label[index] === "0" ? ", the baseline" : member(index, T) ? ", on the front"
      : state[index] === "COMPLETE" ? "" : `, ${state[index]}: never on the front`;
    lines.push(`<b>trial ${label[index]}</b>${kind}`);
    if (data.reasons[index]) lines.push(escaped(data.reasons[index]));
    const names = data.objectives.map((objective) => objective.metric);
    for (const name of names) lines.push(`<b>${escaped(figure(name, value(name, index)))}</b>`);
    const base = data.points.label.indexOf("0");
    if (base >= 0 && data.points.valid[base] && base !== index && data.points.valid[index]) {
      lines.push(`against the baseline: ${names.map((name) => against(name, index, base)).join(", ")}`);
    }
    if (data.confirmed[index]) lines.push(...data.confirmed[index].lines.map(escaped));
    for (const [name, knob] of Object.entries(data.knobs)) {
      if (knob.has[index] >= 0) lines.push(`<i>${escaped(name)}</i> = ${escaped(knob.values[knob.has[index]])}`);
    }
    const rest = Object.keys(data.metrics).filter((name) => name !== ORDER && !names.includes(name) && value(name, index) !== null);
    lines.push(`<small>${escaped(rest.map((name) => figure(name, value(name, index))).join(", "))}</small>`);
    return lines.join("<br>");
  }
  function against(name, index, base) {
    const ours = scaled(name, index), theirs = scaled(name, base), {label, digits, more: up} = data.metrics[name];
    const signed = (change, places) => `${change < 0 ? "-" : "+"}${number(Math.abs(change), places)}`;
    return up || theirs === 0 ? `${signed(ours - theirs, digits)} ${label}` : `${signed(100 * (ours / theirs - 1), 0)} % ${label}`;
  }
  function detailsOfPublished(row) {
    const shares = Object.entries(row.ratios).filter(([name]) => data.metrics[name]).map(([name, ratio]) => `${data.metrics[name].label}: ${number(ratio, 2)} x`);
    const where = row.device ? `${row.data}, ${row.device}` : row.data;
    return `<b>${escaped(row.paper)}, ${escaped(row.where)}: ${escaped(row.label)}</b><br>published, against its own baseline “${escaped(row.baseline)}” (${escaped(where)}):<br>${escaped(shares.join(", "))}`;
  }

  function tip(event) {
    const found = event.points[0], box = $("tip"), point = found && found.customdata;
    if (point === undefined || point === null) return;
    box.innerHTML = typeof point === "number" ? details(point) : detailsOfPublished(point);
    box.hidden = false;
    const {clientX, clientY} = event.event, gap = 16;
    const left = clientX + gap + box.offsetWidth > innerWidth ? clientX - gap - box.offsetWidth : clientX + gap;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.max(4, Math.min(clientY + gap, innerHeight - box.offsetHeight - 4))}px`;
  }

  // The pinned point, and the way to its run.

  const server = () => {
    const known = (data.runs && data.runs.server) || "";
    if (!framed) return known;
    const {origin} = new URL(location.href);
    return known.startsWith(`${origin}/`) ? known : origin; // a server below a path is known by its address only
  };
  function address(label) {
    const run = data.runs && data.runs.trials[label];
    if (!run) return null;
    return `${(server() || "http://127.0.0.1:5000").replace(/\/$/, "")}/#/experiments/${data.runs.experiment}/runs/${run}?workflowType=machine_learning`;
  }
  function pin(label) {
    view.pinned = label;
    const box = $("pin"), index = data.points.label.indexOf(label);
    box.hidden = index < 0;
    if (index >= 0) {
      const where = address(label);
      let way = "";
      if (where && framed) {
        way = `<hr>Its run: MLflow opens no links from a plot. Copy the address, or find the run whose name begins with ${escaped(label)}.<input readonly value="${escaped(where)}" aria-label="address of the run"><button type="button" class="copy">Copy</button>`;
      } else if (where) {
        way = `<hr><a href="${escaped(where)}" target="_blank" rel="noopener">Its run in MLflow</a>${server() ? "" : " (while headway ui runs)"}`;
      }
      box.innerHTML = `<button type="button" aria-label="close">✕</button>${details(index)}${way}`;
      box.querySelector("button").onclick = () => pin(null);
      const field = box.querySelector("input"), copy = box.querySelector(".copy");
      if (field) {
        field.onclick = () => field.select();
        // The clipboard's newer interface is closed to a sandbox.
        copy.onclick = () => { field.select(); copy.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C"; };
      }
    }
    soon();
  }

  // Controls.

  function options(select, names, chosen, words) {
    select.replaceChildren(...names.map((name) => new Option(words(name), name, false, name === chosen)));
  }
  function clock() {
    const hours = data.finished.hours, total = hours.length ? hours[hours.length - 1] : 0;
    $("at").max = view.unit === "trials" ? all() : total;
    const T = when();
    $("at").value = view.unit === "trials" ? T : T ? hours[T - 1] : 0;
    const spent = T ? hours[T - 1] : 0;
    const told = spent < 1 ? `${number(60 * spent, 0)} min` : `${number(spent, 1)} h`;
    $("when").textContent = view.at === null ? `now (${all()} trials, ${told})` : `${T} of ${all()} trials, ${told}`;
    $("time").hidden = all() < 2;
  }
  function setUp() {
    // An axis for studies of one objective, and to see the order.
    data.metrics[ORDER] = {label: "trial", unit: "", scale: 1, digits: 0, more: null};
    data.points.metrics[ORDER] = data.points.label.map(Number);
    data.axes.push(ORDER);
    if (!data.axes.includes(view.y)) view.y = data.objectives[0].metric;
    if (!data.axes.includes(view.x) || view.x === view.y) view.x = (data.objectives[1] || {metric: ORDER}).metric;
    for (const name of ["x", "y"]) options($(name), data.axes, view[name], axis);
    const papers = [...new Set(data.published.map((row) => row.paper))];
    options($("published"), ["", ...papers, "all"], view.published, (name) => ({"": "none", all: "all papers"})[name] || name);
    $("title").textContent = data.title;
    $("tabs").hidden = !data.matrix;
    $("time").hidden = false;
    clock();
  }
  let waiting = false;
  function soon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }
  for (const name of ["x", "y", "colour", "published"]) {
    $(name).onchange = () => { view[name] = $(name).value; soon(); };
  }
  $("others").onchange = () => { view.others = $("others").checked; soon(); };
  $("unit").onchange = () => { view.unit = $("unit").value; clock(); };
  $("tab").onchange = () => {
    view.tab = $("tab").value;
    plot.hidden = view.tab === "matrix";
    $("matrix").hidden = view.tab !== "matrix";
    soon();
  };
  $("at").oninput = () => {
    const at = Number($("at").value), hours = data.finished.hours;
    const T = view.unit === "trials" ? Math.round(at) : hours.filter((spent) => spent <= at * (1 + 1e-9)).length;
    view.at = T >= all() ? null : T;
    const kept = $("at").value;
    clock();
    $("at").value = kept;
    soon();
  };
  $("controls").classList.add("folded");
  $("more").onclick = () => { $("more").textContent = $("controls").classList.toggle("folded") ? "more …" : "less"; };
  narrow.addEventListener("change", soon);
  addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });

  // News, while the search runs. A sandbox may not fetch; a script of the server that it came from it may load.

  let failures = 0;
  function ask() {
    const script = document.createElement("script");
    const over = (failed) => {
      script.remove();
      failures = failed ? failures + 1 : 0;
      if (data.runs.live && failures < PATIENCE) setTimeout(ask, NEWS);
      else soon();
    };
    script.onload = () => over(false);
    script.onerror = () => over(true);
    script.src = `${server().replace(/\/$/, "")}/get-artifact?path=pareto.mjs&run_uuid=${data.runs.run}&at=${Date.now()}`;
    document.head.append(script);
  }
  window.headway = (fresh) => { data = fresh; setUp(); if (view.pinned !== null) pin(view.pinned); else soon(); };

  new ResizeObserver(() => { if (!plot.hidden && plot.layout) Plotly.Plots.resize(plot); }).observe(plot);
  setUp();
  draw().then(() => {
    plot.on("plotly_hover", tip);
    plot.on("plotly_unhover", () => { $("tip").hidden = true; });
    plot.on("plotly_click", (event) => {
      const point = event.points[0].customdata;
      if (typeof point === "number") pin(data.points.label[point]);
    });
    plot.on("plotly_relayout", (change) => { if (Object.keys(change).some((key) => key.includes("range"))) soon(); });
    document.body.dataset.drawn = "yes";
    if (framed && data.runs && data.runs.live) setTimeout(ask, NEWS);
  });
})();
