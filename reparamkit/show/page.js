"use strict";
// The page of a report. `report` is Report.to_json with `groups` and `coverage`; see reparamkit/reporting.py for its fields.
const report = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HIDDEN = new Set(["view", "size", "constant"]);
const GAP = 26, MARGIN = 40, TOP = 44, BUCKET = 600, LARGE = 1500, TANGLED = 2000, NEAR = 8, LEGIBLE = 0.6;

// --- small helpers ----------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const summary = (merges, left) => `${exact(merges)} merge${merges === 1 ? "" : "s"}, ${exact(left)} left as ${left === 1 ? "it is" : "they are"}`;
const exact = (number) => number.toLocaleString("en-US");
const change = (old, now) => old ? `${now > old ? "+" : ""}${(100 * (now / old - 1)).toFixed(1)}%` : "";
const sizes = (node) => node.shape ? `${node.shape.map((n) => n < 0 ? "?" : n).join(" × ") || "scalar"}` : "";
const power = (error) => error === null ? "not checked" : Number(error).toExponential(0);
// Neighbouring merges get hues far apart.
const hue = (site) => Math.round(190 + site * 137.508) % 360;
const fill = (site) => `hsl(${hue(site)} var(--chroma) var(--light))`;
const strong = (site) => `hsl(${hue(site)} 55% var(--strong))`;
const tail = (text, length) => text.length > length ? "…" + text.slice(1 - length) : text;

// --- the graphs: what is shown, and who reads whom -----------------------------------------------------

const refused = new Map();
for (const group of report.groups)
  for (const number of group.refusals) {
    const { path } = report.refusals[number];
    refused.set(path, [...(refused.get(path) || []), { ...report.refusals[number], group }]);
  }

/** The nodes to draw, in an order in which inputs stand right before their first reader. */
function visible(nodes, minor) {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const shown = (node) => minor || !HIDDEN.has(node.role);
  const sources = new Map();
  // What a hidden view reads, its reader reads; a size or a constant is no edge.
  const through = (name) => {
    const node = byName.get(name);
    if (!node) return [];
    if (shown(node)) return [name];
    if (node.role !== "view") return [];
    if (!sources.has(name)) sources.set(name, [...new Set(node.inputs.flatMap(through))]);
    return sources.get(name);
  };
  let found = nodes.filter(shown).map((node) => ({ node, inputs: [...new Set(node.inputs.flatMap(through))] }));
  const first = new Map();
  found.forEach((each, k) => each.inputs.forEach((name) => first.has(name) || first.set(name, k)));
  const place = (each, k) => each.inputs.length ? k : (first.get(each.node.name) ?? k) - 0.5;
  found = found.map((each, k) => [place(each, k), each]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
  // An input that nobody shown reads would be drawn alone.
  return found.filter((each) => each.inputs.length || first.has(each.node.name) || each.node.role === "compute");
}

// --- layout: cut where all paths meet, dagre between two cuts ------------------------------------------

/** Below its kind a box has the path of its module; the input of a part, that of the part. */
function label(node) {
  const part = report.parts[parseInt(node.name) || 0];
  return node.op === "call_module" ? node.path : node.role === "input" && part ? part.path : "";
}

function boxSize(node) {
  const path = tail(label(node), 26);
  return { path, width: Math.max(44, 22 + 6.6 * node.kind.length, path ? 16 + 5.9 * path.length : 0), height: path ? 36 : 24 };
}

/** Positions of the nodes that every path passes. */
function cuts(items) {
  const at = new Map(items.map((each, k) => [each.node.name, k]));
  const reach = items.map(() => -1);
  items.forEach((each, k) => each.inputs.forEach((name) => { reach[at.get(name)] = k; }));
  const found = [];
  let open = -1;
  for (let k = 0; k < items.length; k++) {
    if (open <= k) found.push(k);
    open = Math.max(open, reach[k]);
  }
  return found;
}

const known = new Map();

/** Places of a piece, its first and last node at x = 0; equal pieces are laid out once. */
function laidOut(boxes, edges) {
  const key = JSON.stringify([boxes.map((b) => [Math.round(b.width), b.height]), edges]);
  if (!known.has(key)) known.set(key, arranged(boxes, edges));
  return known.get(key);
}

function arranged(boxes, edges) {
  if (boxes.length <= LARGE) {
    try { return byDagre(boxes, edges); } catch (error) { console.warn("dagre:", error.message); }
  }
  return byRows(boxes, edges);
}

/** By dagre; of a tangle, in which everything reads everything before it, far edges only run along the side. */
function byDagre(boxes, edges) {
  const span = edges.reduce((sum, [a, b]) => sum + b - a, 0), first = new Map(), last = new Map();
  for (const [a, b] of edges) {
    first.set(a, Math.min(first.get(a) ?? b, b));
    last.set(b, Math.max(last.get(b) ?? a, a));
  }
  const near = edges.map(([a, b]) => span <= TANGLED || b - a <= NEAR || first.get(a) === b || last.get(b) === a);
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ ranksep: GAP, nodesep: 18, edgesep: 10, ranker: boxes.length > 400 ? "longest-path" : "network-simplex" });
  boxes.forEach((box, k) => graph.setNode(String(k), { width: box.width, height: box.height }));
  edges.forEach(([a, b], k) => near[k] && graph.setEdge(String(a), String(b), {}));
  dagre.layout(graph);
  const places = boxes.map((_, k) => ({ x: graph.node(String(k)).x, y: graph.node(String(k)).y }));
  const right = Math.max(...places.map((place, k) => place.x + boxes[k].width / 2));
  const aside = (a, b, k) => [places[a].y + 26, places[b].y - 26].map((y) => ({ x: right + 10 + 3 * (k % 10), y }));
  const bends = edges.map(([a, b], k) => near[k] ? graph.edge(String(a), String(b)).points.slice(1, -1) : aside(a, b, k));
  return centred(boxes, places, bends);
}

/** Rows by longest path; for pieces that are too large for dagre. */
function byRows(boxes, edges) {
  const row = boxes.map(() => 0);
  edges.forEach(([a, b]) => { row[b] = Math.max(row[b], row[a] + 1); });
  const ends = [], places = boxes.map((box, k) => {
    const x = (ends[row[k]] || 0) + box.width / 2;
    ends[row[k]] = x + box.width / 2 + 18;
    return { x, y: row[k] * (36 + GAP) + 18 };
  });
  places.forEach((place, k) => { place.x -= (ends[row[k]] - 18) / 2; });
  return centred(boxes, places, edges.map(() => []));
}

function centred(boxes, places, bends) {
  const left = Math.min(...places.map((p, k) => p.x - boxes[k].width / 2));
  const right = Math.max(...places.map((p, k) => p.x + boxes[k].width / 2));
  const middle = boxes.length ? places[0].x : (left + right) / 2, top = places[0].y - boxes[0].height / 2;
  const moved = (p) => ({ x: p.x - middle, y: p.y - top });
  const last = places.length - 1;
  return {
    places: places.map((p, k) => k === last ? { x: 0, y: p.y - top } : moved(p)),
    bends: bends.map((points) => points.map(moved)),
    depth: places[last].y - top,
  };
}

/** What is drawn of a graph; what nothing connects, as the parts of a model that was traced in parts, one below the other. */
function pieces(nodes, minor) {
  const items = visible(nodes, minor), read = new Set(items.flatMap((item) => item.inputs)), parts = [[]];
  const alone = ({ node, inputs }) => node.role === "output" || !inputs.length && !read.has(node.name);
  for (const item of items) {
    parts[parts.length - 1].push(item);
    if (alone(item)) parts.push([]);
  }
  return parts.filter((part) => part.length).flatMap((part, k) => split(part, k ? 2 * GAP : 0));
}

/** A part as pieces between cuts, each with its own coordinates. gap: above the first. */
function split(items, gap) {
  const boxes = items.map((each) => ({ node: each.node, ...boxSize(each.node) }));
  const at = new Map(items.map((each, k) => [each.node.name, k]));
  const stops = cuts(items);
  if (stops[stops.length - 1] !== items.length - 1) stops.push(items.length - 1);
  const found = [];
  for (let k = 0; k + 1 < stops.length; k++) {
    const [from, to] = [stops[k], stops[k + 1]];
    const part = boxes.slice(from, to + 1), edges = [];
    for (let j = from + 1; j <= to; j++) items[j].inputs.forEach((name) => {
      const i = at.get(name);
      if (i >= from && i < j) edges.push([i - from, j - from]);
    });
    found.push({ boxes: part, edges, ...laidOut(part, edges), from: part[0].node.name, gap: k ? 0 : gap });
  }
  if (items.length === 1) found.push({ boxes, edges: [], ...laidOut(boxes, []), from: boxes[0].node.name, gap });
  return found;
}

/** Give the pieces of both graphs their heights: a cut that both have stands at one height. */
function stacked(before, after) {
  const right = new Map(after.map((piece, k) => [piece.from, k]));
  let y = TOP, next = 0, ahead = TOP, widthLeft = 0, widthRight = 0;
  const place = (piece, top) => { piece.y = top + piece.gap; return piece.y + piece.depth; };
  const flush = (until) => { while (next < until) ahead = place(after[next++], ahead); };
  for (const piece of before) {
    const match = right.get(piece.from);
    if (match !== undefined && match >= next) {
      flush(match);
      y = ahead = Math.max(y, ahead);
    }
    y = place(piece, y);
  }
  flush(after.length);
  return Math.max(y, ahead) + MARGIN + 30;
}

// --- the drawing: boxes, edges and regions in buckets by height ----------------------------------------

let scene = null, zoom = 1, fitted = true, selected = null, hits = new Set();

function bounds(list) {
  return list.reduce(([a, b], piece) => piece.places.reduce(([c, d], p, k) =>
    [Math.min(c, p.x - piece.boxes[k].width / 2), Math.max(d, p.x + piece.boxes[k].width / 2)], [a, b]), [-60, 60]);
}

function composed(minor) {
  const sides = [pieces(report.graph_before, minor), pieces(report.graph_after, minor)];
  const height = stacked(...sides);
  const made = { boxes: [], edges: [], regions: [new Map(), new Map()], heads: [], height, middle: 0, named: [new Map(), new Map()] };
  let x = MARGIN;
  sides.forEach((list, side) => {
    const [left, right] = bounds(list);
    const centre = x - left;
    made.heads.push({ x: centre, text: side ? `after: ${exact(report.after.ops)} operations` : `before: ${exact(report.before.ops)} operations` });
    for (const piece of list) addPiece(made, piece, side, centre);
    x += right - left + 2 * MARGIN;
    if (!side) made.middle = x - MARGIN;
  });
  made.width = x - MARGIN;
  made.buckets = bucketed(made);
  return made;
}

function addPiece(made, piece, side, centre) {
  const boxes = piece.boxes.map((box, k) => {
    const found = made.named[side].get(box.node.name) || { ...box, side, x: centre + piece.places[k].x, y: piece.y + piece.places[k].y };
    if (!made.named[side].has(box.node.name)) {
      made.named[side].set(box.node.name, found);
      made.boxes.push(found);
      found.node.sites.forEach((site) => grow(made.regions[side], site, found));
    } else if (k === 0) found.y2 = piece.y + box.height / 2;
    return found;
  });
  piece.edges.forEach(([a, b], k) => {
    // The first node of a piece was drawn by the piece before, higher up if the other graph needs more room.
    const points = piece.bends[k].map((p) => ({ x: centre + p.x, y: piece.y + p.y }));
    made.edges.push({ from: boxes[a], to: boxes[b], points, top: piece.y, first: a === 0 });
  });
}

function grow(regions, site, box) {
  const old = regions.get(site) || { x1: Infinity, x2: -Infinity, y1: Infinity, y2: -Infinity };
  regions.set(site, {
    x1: Math.min(old.x1, box.x - box.width / 2 - 7), x2: Math.max(old.x2, box.x + box.width / 2 + 7),
    y1: Math.min(old.y1, box.y - box.height / 2 - 6), y2: Math.max(old.y2, box.y + box.height / 2 + 6),
  });
}

function bucketed(made) {
  const buckets = Array.from({ length: Math.ceil(made.height / BUCKET) + 1 }, () => ({ boxes: [], edges: [], sites: new Set() }));
  const each = (y1, y2, use) => {
    const last = Math.min(buckets.length - 1, Math.floor(y2 / BUCKET));
    for (let k = Math.max(0, Math.floor(y1 / BUCKET)); k <= last; k++) use(buckets[k]);
  };
  for (const box of made.boxes) each(box.y - 20, box.y + 20, (bucket) => bucket.boxes.push(box));
  for (const edge of made.edges) each(edge.from.y, edge.to.y, (bucket) => bucket.edges.push(edge));
  for (const regions of made.regions)
    for (const [site, r] of regions) each(r.y1, r.y2, (bucket) => bucket.sites.add(site));
  return buckets;
}

function draw() {
  const view = $("graphs"), svg = $("drawing");
  const wide = Math.max(view.clientWidth, scene.width * zoom), high = Math.max(view.clientHeight, scene.height * zoom);
  $("space").style.width = `${wide}px`;
  $("space").style.height = `${high}px`;
  svg.setAttribute("width", view.clientWidth);
  svg.setAttribute("height", view.clientHeight);
  const shift = Math.max(0, (view.clientWidth - scene.width * zoom) / 2);
  const top = view.scrollTop / zoom, bottom = top + view.clientHeight / zoom;
  const stage = shape("g", { transform: `translate(${shift - view.scrollLeft} ${-view.scrollTop}) scale(${zoom})` });
  const range = scene.buckets.slice(Math.floor(top / BUCKET), Math.floor(bottom / BUCKET) + 1);
  stage.append(shape("line", { class: "middle", x1: scene.middle, x2: scene.middle, y1: top, y2: bottom }));
  const sites = new Set(range.flatMap((bucket) => [...bucket.sites]));
  for (const site of sites) drawRegion(stage, site);
  for (const edge of new Set(range.flatMap((bucket) => bucket.edges))) stage.append(drawnEdge(edge));
  for (const box of new Set(range.flatMap((bucket) => bucket.boxes))) drawBox(stage, box);
  for (const head of scene.heads) {
    const width = 8 * head.text.length + 20;
    stage.append(shape("rect", { class: "headline", x: head.x - width / 2, y: top + 4, width, height: 26, rx: 6 }));
    stage.append(shape("text", { class: "head", x: head.x, y: top + 22 }, head.text));
  }
  svg.replaceChildren(stage);
}

const isOn = (site) => selected && selected.site === site ? " on" : "";

function drawRegion(stage, site) {
  const [left, right] = scene.regions.map((regions) => regions.get(site));
  const colour = strong(site);
  for (const r of [left, right]) if (r)
    stage.append(shape("rect", { class: "region" + isOn(site), x: r.x1, y: r.y1, width: r.x2 - r.x1, height: r.y2 - r.y1, rx: 9, style: `fill:${colour}` }));
  if (left && right) {
    const middle = (left.x2 + right.x1) / 2;
    const d = `M${left.x2} ${left.y1}C${middle} ${left.y1} ${middle} ${right.y1} ${right.x1} ${right.y1}`
      + `V${right.y2}C${middle} ${right.y2} ${middle} ${left.y2} ${left.x2} ${left.y2}Z`;
    stage.append(shape("path", { class: "ribbon" + isOn(site), d, style: `fill:${colour}` }));
  }
}

function drawnEdge(edge) {
  const { from, to, points } = edge;
  const start = { x: from.x, y: from.y + from.height / 2 }, end = { x: to.x, y: to.y - to.height / 2 };
  let d = `M${start.x} ${start.y}`, last = start;
  for (const p of [...points.filter((p) => p.y > start.y && p.y < end.y), end]) {
    const bend = (p.y - last.y) / 2;
    d += `C${last.x} ${last.y + bend} ${p.x} ${p.y - bend} ${p.x} ${p.y}`;
    last = p;
  }
  return shape("path", { class: "edge", d: `${d}m-3 -5l3 5l3 -5` });
}

function drawBox(stage, box) {
  const { node } = box, site = node.sites[node.sites.length - 1];
  const chosen = selected && (selected.node === node.name && selected.side === box.side || site !== undefined && selected.site === site);
  const left = site === undefined && refused.has(node.path) && node.op === "call_module";
  const classes = ["box", left && "left", HIDDEN.has(node.role) && "minor", chosen && "on", hits.has(node) && "hit"];
  const rect = shape("rect", {
    class: classes.filter(Boolean).join(" "), x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width, height: box.height,
    rx: node.role === "input" || node.role === "output" ? 12 : 6,
  });
  if (site !== undefined) rect.style.cssText = `fill:${fill(site)};${hits.has(node) ? "" : `stroke:${strong(site)}`}`;
  rect.addEventListener("click", () => choose({ side: box.side, node: node.name, site }, false));
  rect.addEventListener("mousemove", (event) => tip(event, node, site));
  rect.addEventListener("mouseleave", () => { $("tip").style.display = "none"; });
  stage.append(rect, shape("text", { x: box.x, y: box.y + (box.path ? -2 : 4) }, node.kind));
  if (box.path) stage.append(shape("text", { class: "path", x: box.x, y: box.y + 12 }, box.path));
}

function tip(event, node, site) {
  const merge = site === undefined ? null : report.merges[site];
  const lines = [`${node.kind}  ${node.path}`, node.detail, sizes(node)];
  if (merge) lines.push(`merged into ${merge.path}`, ...merge.rules.map((rule, k) => `${rule}: ${merge.equations[k] || ""}`));
  for (const each of refused.get(node.path) || []) if (node.op === "call_module") lines.push(`left: ${each.reason}`);
  const box = $("tip");
  box.textContent = lines.filter(Boolean).join("\n");
  box.style.display = "block";
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8)}px`;
}

// --- choosing ---------------------------------------------------------------------------------------

/** what: { side, node, site }. move: whether the drawing goes there. */
function choose(what, move) {
  selected = what;
  document.querySelectorAll(".row.on").forEach((row) => row.classList.remove("on"));
  const row = what && (what.refusal !== undefined ? $(`left-${what.refusal}`) : what.site !== undefined ? $(`site-${what.site}`) : null);
  if (row) { row.classList.add("on"); row.scrollIntoView({ block: "nearest" }); }
  showDetail();
  if (fitted) fit();
  if (what && move) centre(what);
  history.replaceState(null, "", what && what.site !== undefined ? `#site=${what.site}` : "#");
  draw();
}

function centre(what) {
  const region = what.site === undefined ? null : scene.regions[0].get(what.site) || scene.regions[1].get(what.site);
  const box = what.node && scene.named[what.side].get(what.node);
  const [x, y] = region ? [(region.x1 + region.x2) / 2, (region.y1 + region.y2) / 2] : box ? [box.x, box.y] : [];
  if (y === undefined) return;
  $("graphs").scrollTop = y * zoom - $("graphs").clientHeight / 2;
  $("graphs").scrollLeft = x * zoom - $("graphs").clientWidth / 2;
}

/** The operation at a path, as something to choose; nothing if the graph has none. */
function at(path) {
  const node = report.graph_before.find((each) => each.path === path && each.op === "call_module")
    || report.graph_before.find((each) => each.path === path || each.kind === path);
  return node && { side: 0, node: node.name, site: node.sites[node.sites.length - 1] };
}

const goTo = (path) => { if (at(path)) choose(at(path), true); };

function showDetail() {
  const panel = $("detail");
  panel.replaceChildren();
  if (!selected) return;
  panel.append(element("button", { class: "close", title: "Close (Esc)", onclick: () => choose(null) }, "×"));
  if (selected.refusal !== undefined) showRefusal(panel, report.refusals[selected.refusal]);
  else if (selected.site !== undefined) showMerge(panel, report.merges[selected.site], selected.site);
  if (selected.node) showNode(panel, (selected.side ? report.graph_after : report.graph_before).find((n) => n.name === selected.node));
}

function showMerge(panel, merge, site) {
  panel.style.setProperty("--mark", strong(site));
  panel.append(element("h2", {}, merge.path), element("div", { class: "soft" }, merge.layer));
  panel.append(element("h3", {}, "rules"));
  merge.rules.forEach((rule, k) => panel.append(element("div", {}, rule), element("code", {}, merge.equations[k] || "")));
  panel.append(element("h3", {}, "cost"), costs(merge));
  panel.append(element("h3", {}, "relative error in float64"), element("div", {}, power(merge.error)));
  if (merge.pictures.length) {
    panel.append(element("h3", {}, "weights"));
    merge.pictures.forEach((picture) => panel.append(drawnPicture(picture)));
    panel.append(element("div", { class: "scale" }), element("div", { class: "soft" }, "negative · zero · positive, each picture on its own scale"));
  }
  panel.append(element("h3", {}, `replaces ${merge.members.length}`));
  panel.append(element("ul", {}, ...merge.members.map((member) => element("li", {}, element("button", { onclick: () => goTo(member) }, member)))));
}

function showRefusal(panel, refusal) {
  panel.style.removeProperty("--mark");
  const group = report.groups.find((each) => each.refusals.includes(report.refusals.indexOf(refusal)));
  panel.append(element("h2", {}, refusal.path), element("div", { class: "soft" }, refusal.layer));
  panel.append(element("h3", {}, `left: ${group.title}`), element("div", {}, refusal.reason));
  panel.append(element("h3", {}, "what to do"), element("div", {}, group.advice));
  if (refusal.before) panel.append(element("h3", {}, "cost, if it were merged"), costs(refusal));
}

function costs(merge) {
  const line = (name, old, now) => element("tr", {}, ...[name, exact(old), exact(now), change(old, now)].map((cell) => element("td", {}, cell)));
  return element("table", {},
    element("tr", {}, ...["", "before", "after", ""].map((cell) => element("th", {}, cell))),
    ...(isPriced(merge) ? [line("FLOPs", merge.before.flops, merge.after.flops)] : []),
    line("stored numbers", merge.before.stored, merge.after.stored),
    line("operations", merge.before.launches, merge.after.launches),
    ...(merge.before.milliseconds ? [line("milliseconds", merge.before.milliseconds, merge.after.milliseconds)] : []));
}

function showNode(panel, node) {
  const alone = selected.site === undefined && selected.refusal === undefined;
  if (selected.site === undefined) panel.style.removeProperty("--mark");
  panel.append(element("h3", {}, alone ? "operation" : "the operation"));
  panel.append(element(alone ? "h2" : "b", {}, `${node.kind} ${node.op === "call_module" ? node.path : ""}`));
  for (const text of [node.detail, sizes(node) && `value: ${sizes(node)}`, node.op !== "call_module" && node.path && `in ${node.path}`])
    if (text) panel.append(element("div", { class: "soft" }, text));
  if (node.op === "call_module" && alone) for (const each of refused.get(node.path) || [])
    panel.append(element("h3", {}, `left: ${each.group.title}`), element("div", {}, each.reason), element("h3", {}, "what to do"), element("div", {}, each.group.advice));
}

/** Signed bytes as blue, white and red; tiles are set apart. */
function drawnPicture(picture) {
  const bytes = Uint8Array.from(atob(picture.pixels), (letter) => letter.charCodeAt(0));
  const [high, wide] = picture.tile, { rows, columns } = picture;
  const gapped = (n, tile) => n + (Math.ceil(n / tile) - 1);
  const w = gapped(columns, wide), h = gapped(rows, high);
  const zoomed = Math.max(1, Math.min(16, Math.floor(320 / w)));
  const canvas = element("canvas", { width: w, height: h, style: `width:${w * zoomed}px;height:${h * zoomed}px`, role: "img", "aria-label": picture.title });
  const context = canvas.getContext("2d"), image = context.createImageData(w, h);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    const value = (bytes[i * columns + j] << 24 >> 24) / 127;
    const at = 4 * ((i + Math.floor(i / high)) * w + j + Math.floor(j / wide));
    const target = value < 0 ? [33, 102, 172] : [178, 24, 43];
    for (let c = 0; c < 3; c++) image.data[at + c] = 247 + (target[c] - 247) * Math.abs(value);
    image.data[at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return element("figure", {}, canvas, element("figcaption", {}, `${picture.merged ? "merged" : "replaced"}  ${picture.title}, up to ±${picture.largest.toPrecision(3)}`));
}

// --- the list -----------------------------------------------------------------------------------------

/** A graph rule may replace what has no price. */
const isPriced = ({ before, after }) => before.flops > 0 || after.flops > 0;
const saved = (merge) => merge.before.flops - merge.after.flops;
const ORDERS = {
  program: () => 0,
  flops: (a, b) => saved(report.merges[b]) - saved(report.merges[a]),
  error: (a, b) => Number(report.merges[b].error ?? -1) - Number(report.merges[a].error ?? -1),
};

function wanted(words, ...texts) {
  const all = texts.join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}

function showList() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), rule = $("rule").value;
  const sites = report.merges.map((_, k) => k).filter((k) => {
    const merge = report.merges[k];
    return (!rule || merge.rules.includes(rule)) && wanted(words, merge.path, merge.layer, ...merge.rules, ...merge.members);
  }).sort(ORDERS[$("order").value]);
  const warned = rule ? [] : report.warnings.filter((each) => wanted(words, each.path, each.text));
  const rows = warned.length ? [element("h2", {}, "warnings"), ...warned.map(warningRow)] : [];
  if (rule !== "left") rows.push(...sites.map(mergeRow));
  let left = 0;
  if (!rule || rule === "left") for (const group of report.groups) {
    const found = group.refusals.filter((k) => {
      const { path, layer, reason } = report.refusals[k];
      return wanted(words, path, layer, reason, group.title);
    });
    left += found.length;
    if (found.length) rows.push(element("h2", {}, `left: ${group.title}`), element("p", {}, `what to do: ${group.advice}`), ...found.map(refusalRow));
  }
  $("list").replaceChildren(...rows);
  hits = new Set(words.length ? [...report.graph_before, ...report.graph_after].filter((node) => wanted(words, node.kind, node.path, node.name)) : []);
  const count = words.length ? `, ${hits.size} operations` : "";
  $("found").textContent = summary(rule === "left" ? 0 : sites.length, left) + count;
}

function mergeRow(site) {
  const merge = report.merges[site];
  const cost = isPriced(merge) ? `${change(merge.before.flops, merge.after.flops) || `+${exact(merge.after.flops)}`} FLOPs · ` : "";
  return element("button", { class: "row" + isOn(site), id: `site-${site}`, style: `--mark:${strong(site)}`, onclick: () => choose({ site }, true) },
    element("b", {}, merge.path), element("span", {}, `${merge.members.length} → ${merge.layer} · ${merge.rules.join(", ")}`),
    element("span", {}, `${cost}error ${power(merge.error)}`));
}

function refusalRow(number) {
  const { path, layer, reason } = report.refusals[number];
  const on = selected && selected.refusal === number ? " on" : "";
  return element("button", { class: "row left" + on, id: `left-${number}`, onclick: () => choose({ ...at(path), refusal: number }, true) },
    element("b", {}, path), element("span", {}, `${layer}: ${reason}`));
}

const warningRow = (warning) => element("button", { class: "row warning", onclick: () => goTo(warning.path) },
  element("b", {}, warning.path), element("span", {}, warning.text));

// --- the frame ----------------------------------------------------------------------------------------

function showHead() {
  $("title").append(report.model || "model", element("small", {}, summary(report.merges.length, report.refusals.length)));
  const names = { parameters: "parameters", ops: "operations", flops: "FLOPs" };
  for (const [name, title] of Object.entries(names)) {
    const [old, now] = [report.before[name], report.after[name]];
    $("totals").append(element("div", {}, element("dt", {}, title), element("dd", {}, `${exact(old)} → ${exact(now)} `, element("b", {}, change(old, now)))));
  }
  if (report.error !== null) $("totals").append(element("div", {}, element("dt", {}, "relative error"), element("dd", {}, Number(report.error).toExponential(1))));
  const { merged, left, share } = report.coverage;
  $("totals").append(element("div", {}, element("dt", {}, "merged"), element("dd", {}, `${exact(merged)} of ${exact(merged + left)} mergeable layers (${(100 * share).toFixed(0)}%)`)));
  const rules = [...new Set(report.merges.flatMap((merge) => merge.rules))].sort();
  $("rule").append(element("option", { value: "" }, "all rules"), ...rules.map((rule) => element("option", { value: rule }, rule)), element("option", { value: "left" }, "left as they are"));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("reparamkit-theme", name); } catch { /* a page from a file may have no storage */ }
}

function startTheme() {
  let kept = null;
  try { kept = localStorage.getItem("reparamkit-theme"); } catch { /* as above */ }
  const asked = new URLSearchParams(location.hash.slice(1)).get("theme");
  document.documentElement.dataset.theme = asked || kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

/** Keep what is in the middle of the view there; the start stays the start. */
function setZoom(value) {
  const view = $("graphs"), scrolled = view.scrollTop > 0, middle = (view.scrollTop + view.clientHeight / 2) / zoom;
  zoom = Math.max(0.15, Math.min(3, value));
  draw();
  if (scrolled) view.scrollTop = middle * zoom - view.clientHeight / 2;
  draw();
}

/** Both graphs side by side in the width there is, if they can be read so, as long as nobody asks for another zoom. */
function fit() {
  fitted = true;
  const wide = $("graphs").clientWidth;
  setZoom(Math.max(LEGIBLE, Math.min(1.1, wide / scene.width)));
  if (!selected) $("graphs").scrollLeft = scene.heads[0].x * zoom - wide / 3;
}

function zoomBy(factor) {
  fitted = false;
  setZoom(zoom * factor);
}

const repaint = () => requestAnimationFrame(draw);
const resized = () => requestAnimationFrame(() => fitted ? fit() : draw());

function step(by) {
  const count = report.merges.length, now = selected && selected.site !== undefined ? selected.site : by > 0 ? -1 : count;
  if (count) choose({ site: (now + by + count) % count }, true);
}

function rebuild() {
  scene = composed($("minor").checked);
  draw();
}

function start() {
  startTheme();
  showHead();
  scene = composed(false);
  showList();
  fit();
  $("graphs").addEventListener("scroll", repaint, { passive: true });
  $("graphs").addEventListener("wheel", (event) => {
    if (event.ctrlKey) { event.preventDefault(); zoomBy(Math.exp(-event.deltaY / 400)); }
  }, { passive: false });
  new ResizeObserver(resized).observe($("graphs"));
  $("larger").onclick = () => zoomBy(1.25);
  $("smaller").onclick = () => zoomBy(0.8);
  $("fit").onclick = fit;
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("minor").onchange = rebuild;
  for (const id of ["rule", "order"]) $(id).onchange = () => { showList(); draw(); };
  $("search").oninput = () => { showList(); draw(); };
  $("search").onkeydown = (event) => {
    const first = [...hits][0];
    if (event.key === "Enter" && first) goTo(first.path);
  };
  addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.target.tagName === "SELECT") return;
    if (event.key === "/") { event.preventDefault(); $("search").focus(); }
    if (event.key === "Escape") choose(null);
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  });
  const site = Number(new URLSearchParams(location.hash.slice(1)).get("site") ?? NaN);
  if (report.merges[site]) choose({ site }, true);
}

start();
