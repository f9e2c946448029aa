"use strict";
// Everything that comes from files is set as text or as an attribute, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const AXES = ["appearance", "motion", "with", "prompt", "seed", "method"];
const values = Object.fromEntries(AXES.map(axis => [axis, [...new Set(data.videos.map(one => one[axis]))]]));
for (const axis of ["appearance", "motion", "with", "prompt"]) values[axis].sort();
values.seed.sort((a, b) => a - b);
const axes = AXES.filter(axis => values[axis].length > 1 || axis === data.rows || axis === data.columns);
const chosen = {};
const marked = new Set();
let score = "", least = "";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
function option(value, text) { return make("option", { value, textContent: text }); }
function named(axis, value) { return axis === "seed" ? `seed ${value}` : value === "" ? "–" : String(value); }

// -- one clock for all videos: they play together and in step

let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches, began = performance.now(), stood = 0;
const live = new Map();
function time() { return playing ? (performance.now() - began) / 1000 : stood; }
function setTime(seconds) { stood = Math.max(seconds, 0); began = performance.now() - stood * 1000; }
function setPlaying(on) {
  stood = time(); playing = on; began = performance.now() - stood * 1000;
  for (const id of ["play", "halt"]) {
    $(id).textContent = playing ? "Pause" : "Play";
    $(id).setAttribute("aria-pressed", String(playing));
  }
}
function tick() {
  const dialog = $("dialog").open;
  for (const [video, state] of live) {
    if (video.readyState < 1 || !video.duration || (dialog && !$("dialog").contains(video))) { if (!video.paused) video.pause(); continue; }
    const wanted = time() % video.duration, apart = Math.abs(video.currentTime - wanted);
    const off = Math.min(apart, video.duration - apart), late = performance.now() - state.moved > 400;
    if (!video.seeking && ((playing && off > 0.09 && late) || (!playing && off > 0.02))) {
      video.currentTime = wanted;
      state.moved = performance.now();
    }
    if (playing && video.paused) video.play().catch(() => {});
    if (!playing && !video.paused) video.pause();
  }
  if (dialog && document.activeElement !== $("time")) {
    const first = $("dialog").querySelector("video");
    if (first && first.duration) $("time").value = Math.round((time() % first.duration) / first.duration * 1000);
  }
  requestAnimationFrame(tick);
}

// -- videos are loaded as they come near, and let go as they are far

const near = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) isIntersecting ? load(target) : unload(target);
}, { rootMargin: "300px" });
function load(element) {
  if (element.hasAttribute("src")) return;
  element.src = element.dataset.src;
  if (element.tagName === "VIDEO") live.set(element, { moved: 0 });
}
function unload(element) {
  if (!element.hasAttribute("src")) return;
  live.delete(element);
  element.removeAttribute("src");
  if (element.tagName === "VIDEO") element.load();
}
function picture(one) {
  const alt = `${one.sentence} (seed ${one.seed})`;
  if (one.still) return make("img", { alt, loading: "lazy" });
  const video = make("video", { muted: true, loop: true, playsInline: true, preload: "auto" });
  video.setAttribute("aria-label", alt);
  return video;
}
function shown(one, now) {
  const element = picture(one);
  element.dataset.src = one.src;
  now ? load(element) : near.observe(element);
  return element;
}

// -- the table

function passes(one) {
  const words = $("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  return words.every(word => one.words.includes(word)) && AXES.every(axis => !chosen[axis] || String(one[axis]) === chosen[axis].slice(1))
    && (!score || least === "" || one.scores[score] >= Number(least));
}
function tile(one, rows, columns) {
  const rest = axes.filter(axis => axis !== rows && axis !== columns).map(axis => named(axis, one[axis]));
  if (score && score in one.scores) rest.push(`${score} ${one.scores[score].toFixed(3)}`);
  const open = make("button", { type: "button", title: one.sentence }, shown(one, false));
  open.onclick = () => compare([one]);
  const box = make("input", { type: "checkbox", checked: marked.has(one), title: "Compare" });
  box.setAttribute("aria-label", `Compare ${one.sentence} seed ${one.seed}`);
  box.onchange = () => { box.checked ? marked.add(one) : marked.delete(one); count(); };
  return make("figure", {}, open, make("figcaption", {}, box, make("span", { textContent: rest.join(" · ") })));
}
function heading(axis, value, videos) {
  const all = make("button", { type: "button", textContent: `Side by side (${Math.min(videos.length, 24)})` });
  all.onclick = () => compare(videos.slice(0, 24));
  return make("th", {}, named(axis, value), ...(videos.length > 1 ? [all] : []));
}
function draw() {
  near.disconnect();
  for (const element of [...live.keys()]) if (!$("dialog").contains(element)) unload(element);
  const rows = $("rows").value, columns = $("columns").value, videos = data.videos.filter(passes);
  const cells = new Map();
  for (const one of videos) {
    const key = JSON.stringify([one[rows], one[columns]]);
    cells.has(key) ? cells.get(key).push(one) : cells.set(key, [one]);
  }
  const of = (axis, value) => videos.filter(one => one[axis] === value);
  const across = values[columns].filter(value => of(columns, value).length);
  const down = rows === columns ? [""] : values[rows].filter(value => of(rows, value).length);
  const head = make("tr", {}, make("th", { textContent: `${rows} / ${columns}` }), ...across.map(value => heading(columns, value, of(columns, value))));
  const body = make("tbody");
  for (const value of down) {
    const row = make("tr", {}, rows === columns ? make("th") : heading(rows, value, of(rows, value)));
    for (const other of across) {
      const found = rows === columns ? of(columns, other) : cells.get(JSON.stringify([value, other])) || [];
      const cell = make("td", { className: found.length ? "" : "empty" }, make("div", {}, ...found.map(one => tile(one, rows, columns))));
      cell.dataset.name = named(columns, other);
      row.append(cell);
    }
    body.append(row);
  }
  $("table").replaceChildren(make("thead", {}, head), body);
  $("count").textContent = `${videos.length} of ${data.videos.length} videos`;
  count();
}
function count() {
  $("compare").textContent = `Compare (${marked.size})`;
  $("compare").disabled = !marked.size;
}

// -- side by side, from the first frame on

function compare(videos) {
  $("side").className = videos.length === 1 ? "one" : "";
  $("side").replaceChildren(...videos.map(card));
  $("dialog").showModal();
  setTime(0);
}
function card(one) {
  const list = make("dl");
  for (const [name, value] of [...one.recipe, ...Object.entries(one.scores).map(([name, value]) => [name, value.toFixed(3)])])
    list.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
  const copy = make("button", { type: "button", textContent: "Copy as command" });
  copy.onclick = async () => {
    try { await navigator.clipboard.writeText(one.command); copy.textContent = "Copied"; } catch { getSelection().selectAllChildren(command); copy.textContent = "Selected: copy it"; }
  };
  const command = make("code", { textContent: one.command });
  return make("div", {}, make("h2", { textContent: `${one.sentence} · seed ${one.seed}${one.method ? ` · ${one.method}` : ""}` }), shown(one, true), copy, command, list);
}
function closed() {
  for (const element of $("side").querySelectorAll("video")) { live.delete(element); element.removeAttribute("src"); element.load(); }
  $("side").replaceChildren();
}
function step(frames) {
  const first = $("dialog").querySelector("video"), fps = Number(first && data.videos.find(one => one.src === first.dataset.src).fps) || 8;
  setPlaying(false);
  const frame = Math.floor(time() * fps + 1e-6) + frames;
  setTime((first && frame < 0 ? Math.round(first.duration * fps) + frame + 0.5 : frame + 0.5) / fps);
}

// -- begin

data.videos.forEach(one => {
  one.words = [one.sentence, one.prompt, one.appearance, one.motion, one.with, one.method, `seed ${one.seed}`].join(" ").toLowerCase();
});
for (const axis of axes.filter(axis => values[axis].length > 1)) {
  const select = make("select", { id: `choose-${axis}` }, option("", "all"), ...values[axis].map(value => option(`=${value}`, named(axis, value))));
  select.onchange = () => { chosen[axis] = select.value; draw(); };
  $("choices").append(make("label", {}, make("span", { textContent: axis }), select));
}
if (data.scores.length) {
  const select = make("select", { id: "score" }, option("", "none"), ...data.scores.map(name => option(name, name)));
  const bound = make("input", { id: "least", type: "number", step: "any", placeholder: "least" });
  select.onchange = () => { score = select.value; draw(); };
  bound.oninput = () => { least = bound.value; draw(); };
  $("choices").append(make("label", {}, make("span", { textContent: "score" }), select), make("label", {}, make("span", { textContent: "at least" }), bound));
}
for (const [id, first] of [["rows", data.rows], ["columns", data.columns]]) {
  $(id).append(...axes.map(axis => option(axis, axis)));
  $(id).value = first;
  $(id).onchange = draw;
}
$("controls").onsubmit = event => event.preventDefault();
$("filter").oninput = draw;
$("size").oninput = () => document.documentElement.style.setProperty("--size", `${$("size").value}px`);
$("play").onclick = $("halt").onclick = () => setPlaying(!playing);
$("compare").onclick = () => compare([...marked]);
$("close").onclick = () => $("dialog").close();
$("dialog").onclose = closed;
$("back").onclick = () => step(-1);
$("on").onclick = () => step(1);
$("time").oninput = () => {
  const first = $("dialog").querySelector("video");
  setPlaying(false);
  if (first && first.duration) setTime($("time").value / 1000 * first.duration * 0.999);
};
if (innerWidth <= 600) { $("size").value = 112; $("size").oninput(); }
setPlaying(playing);
draw();
requestAnimationFrame(tick);
