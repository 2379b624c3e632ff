// Plays sampled sequences with their backspaces. All text from a run becomes text nodes, no markup.
// The semantics are those of replay.py; the page checks on load that each sample replays to its
// recorded text: <html> gets data-ready, data-samples, data-mismatches, and data-error on an error.
"use strict";
(() => {
  const root = document.documentElement;
  window.addEventListener("error", (event) => { root.dataset.error = event.message; });

  const byId = (id) => document.getElementById(id);
  // Half a surrogate pair is not a character; browsers differ in what they do with one.
  const whole = (_, value) =>
    typeof value === "string" ? value.replace(/\p{Surrogate}/gu, "\ufffd") : value;
  const runs = JSON.parse(byId("data").textContent, whole).runs;
  const GLYPHS = { " ": "␣", "\n": "↵", "\t": "⇥" };
  const SPEEDS = [1, 2, 4, 8, 16, 32];
  const FILTERS = [
    ["all samples", () => true],
    ["with backspaces", (sample) => backspaces(sample) > 0],
    ["correct", (sample) => sample.correct === true],
    ["wrong", (sample) => sample.correct === false],
    ["corrupted prompts", (sample) => sample.kind === "corrupted"],
  ];

  // ---- semantics ------------------------------------------------------------------------------

  // pieces: deletable prompt texts, then tokens; each with `born` and `died`, the number of actions
  // after which it is there and no longer there. hits[i]: the piece that action i deletes.
  function trace(sample) {
    const pieces = sample.deletable.map((text) => ({ text, born: 0, died: Infinity, at: -1 }));
    const stack = [...pieces];
    const hits = sample.actions.map(() => null);
    let ended = false;
    sample.actions.forEach(([text, kind], index) => {
      if (ended) return;
      if (kind === "token") {
        const piece = { text, born: index + 1, died: Infinity, at: index };
        pieces.push(piece);
        stack.push(piece);
      } else if (kind === "backspace" && stack.length) {
        hits[index] = stack.pop();
        hits[index].died = index + 1;
      }
      ended = kind === "eos";
    });
    return { pieces, hits };
  }

  const visible = (pieces, time) => pieces.filter((p) => p.born <= time && time < p.died);
  const join = (pieces) => pieces.map((piece) => piece.text).join("");
  // null: nothing is right or wrong, as in a continued text.
  const verdict = (sample) =>
    sample.correct === null ? "" : sample.correct ? "✓ correct" : "✗ wrong";
  const backspaces = (sample) => sample.actions.filter(([, kind]) => kind === "backspace").length;

  function fixedPrompt(sample) {
    const end = sample.deletable.join("");
    return sample.prompt.endsWith(end)
      ? sample.prompt.slice(0, sample.prompt.length - end.length)
      : sample.prompt;
  }

  function problem(sample) {
    if (!sample.prompt.endsWith(sample.deletable.join(""))) {
      return "The prompt does not end with its deletable part, which is shown after it.";
    }
    const replayed = join(visible(trace(sample).pieces, sample.actions.length));
    return replayed === sample.text
      ? ""
      : "These actions do not replay to the recorded text, which is the final text below.";
  }

  // ---- text -----------------------------------------------------------------------------------

  const picture = (character) => String.fromCharCode(0x2400 + character.charCodeAt(0));
  const glyphs = (text) =>
    text.replace(/[ \n\t]/g, (c) => GLYPHS[c]).replace(/[\x00-\x1f]/g, picture) || "∅";

  function element(tag, className, text) {
    const node = document.createElement(tag);
    node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Line ends get a sign before them; other control characters are shown as pictures.
  function prose(className, text, tag = "span") {
    const node = element(tag, className);
    text.split("\n").forEach((line, index) => {
      if (index) node.append(element("span", "glyph", "↵"), "\n");
      node.append(line.replace(/[\x00-\x08\x0b-\x1f]/g, picture));
    });
    return node;
  }

  const label = ([text, kind]) =>
    kind === "backspace" ? "⌫" : kind === "eos" ? "■" : glyphs(text);

  function chances([, , logprob, forced]) {
    const parts = logprob === null
      ? ["probability not known"]
      : [`p\u00a0=\u00a0${Math.exp(logprob).toPrecision(3)}`,
        // An <eos> that a limit forced may be one that the filters had left out.
        `log\u00a0p\u00a0=\u00a0${
          logprob < -1e20 ? "−∞" : logprob.toFixed(3).replace("-", "−")}`];
    if (forced) parts.push("forced");
    return parts.join(" · ");
  }

  function describe(action, hit) {
    const [text, kind] = action;
    const what = {
      token: () => `writes “${glyphs(text)}”`,
      backspace: () => (hit ? `⌫ takes back “${glyphs(hit.text)}”` : "⌫ finds nothing to take back"),
      eos: () => "ends the sequence (<eos>)",
    }[kind]();
    return `${what} · ${chances(action)}`;
  }

  // ---- self-check -----------------------------------------------------------------------------

  const places = runs.flatMap((run) =>
    run.steps.flatMap(({ step, samples }) =>
      samples.map((sample, index) => ({ run: run.name, step, index, sample }))));
  const wrong = places.filter(({ sample }) => problem(sample));
  if (wrong.length) {
    const named = wrong.slice(0, 5).map((p) => `${p.run}, step ${p.step}, sample ${p.index + 1}`);
    const more = wrong.length > 5 ? `; and ${wrong.length - 5} more` : "";
    byId("warning").textContent =
      `${wrong.length} of ${places.length} samples do not replay to their recorded text: ` +
      `${named.join("; ")}${more}.`;
    byId("warning").hidden = false;
  }
  if (location.hash === "#self-check") {
    byId("self-check").textContent = JSON.stringify(places.map(({ sample }) => {
      const { pieces } = trace(sample);
      return sample.actions.map((_, index) => join(visible(pieces, index + 1)));
    }));
  }
  root.dataset.samples = String(places.length);
  root.dataset.mismatches = String(wrong.length);

  // ---- viewer ---------------------------------------------------------------------------------

  let sample = null;
  let pieces = [];
  let hits = [];
  let time = 0;
  let timer = 0;

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => {
      const option = element("option", "", text);
      option.value = String(value);
      return option;
    }));
    if (chosen !== undefined) select.value = String(chosen);
  }

  const currentRun = () => runs[Number(byId("run").value)];
  const currentStep = () => currentRun().steps[Number(byId("step").value)];

  function chooseRun() {
    const steps = currentRun().steps;
    const names = steps.map(({ step }, index) => [index, step.toLocaleString("en")]);
    fill(byId("step"), names, steps.length - 1);
    chooseStep();
  }

  function chooseStep() {
    const accepts = FILTERS[Number(byId("filter").value)][1];
    const samples = currentStep()?.samples ?? [];
    const options = samples.map((each, index) => {
      const count = backspaces(each);
      const parts = [`${index + 1}`];
      if (verdict(each)) parts.push(verdict(each));
      if (count) parts.push(`${count} ⌫`);
      if (each.kind) parts.push(each.kind);
      if (each.difficulty) parts.push(each.difficulty);
      return [index, parts.join(" · "), accepts(each)];
    }).filter((option) => option[2]);
    fill(byId("sample"), options);
    byId("sample").disabled = !options.length;
    chooseSample();
  }

  function chooseSample() {
    pause();
    const value = byId("sample").value;
    sample = value === "" ? null : currentStep().samples[Number(value)];
    ({ pieces, hits } = sample ? trace(sample) : { pieces: [], hits: [] });
    showSample();
    moveTo(sample ? sample.actions.length : 0);
  }

  function showSample() {
    const warning = sample ? problem(sample) : "No sample of this step is of this sort.";
    byId("sample-warning").textContent = warning;
    byId("sample-warning").hidden = !warning;
    byId("position").max = String(sample ? sample.actions.length : 0);
    const chips = pieces.filter((p) => p.at < 0).map((p) => chip(p.text, "prompt", p));
    const written = new Map(pieces.map((piece) => [piece.at, piece]));
    (sample?.actions ?? []).forEach((action, index) => {
      const node = chip(label(action), action[1], written.get(index));
      node.dataset.time = String(index + 1);
      node.title = `${index + 1}: ${describe(action, hits[index])}`;
      node.classList.toggle("forced", Boolean(action[3]));
      node.classList.toggle("unknown", action[2] === null);
      node.style.setProperty("--p", String(action[2] === null ? 0 : Math.exp(action[2])));
      chips.push(node);
    });
    byId("strip").replaceChildren(...chips);
    for (const name of ["question", "answer"]) {
      byId(name).replaceChildren(prose("", sample?.[name] || "–"));
    }
    byId("final").replaceChildren(prose("", sample ? sample.text || "∅" : "–"));
    byId("verdict").textContent = sample ? verdict(sample) : "";
    const text = sample?.correct === null;
    byId("asked").textContent = text ? "Given text" : "Question";
    byId("wanted").textContent = text ? "True continuation" : "Reference answer";
    byId("verdict").classList.toggle("right", Boolean(sample?.correct));
    // The longest state holds the place, so that nothing below moves while it plays.
    let longest = [];
    for (let t = 0; sample && t <= sample.actions.length; t += 1) {
      const state = visible(pieces, t);
      if (state.length > longest.length) longest = state;
    }
    byId("sizer").replaceChildren(
      prose("", sample ? `${fixedPrompt(sample)}${join(longest)}  ` : ""));
  }

  function chip(text, kind, piece) {
    const node = element("li", `chip ${kind}`, kind === "prompt" ? glyphs(text) : text);
    node.piece = piece;
    node.dataset.time = "0";
    if (kind === "prompt") node.title = `part of the prompt that may be deleted: “${glyphs(text)}”`;
    return node;
  }

  function moveTo(target) {
    const count = sample ? sample.actions.length : 0;
    time = Math.min(Math.max(target, 0), count);
    const text = byId("text");
    text.replaceChildren();
    if (sample) {
      const now = visible(pieces, time);
      const action = time ? sample.actions[time - 1] : null;
      const newest = now.length && now[now.length - 1].born === time && time ? now.pop() : null;
      text.append(
        prose("fixed", fixedPrompt(sample)),
        prose("prefix", join(now.filter((piece) => piece.at < 0))),
        prose("written", join(now.filter((piece) => piece.at >= 0))));
      if (newest) text.append(prose("newest", newest.text));
      if (time && hits[time - 1]) text.append(prose("ghost", hits[time - 1].text, "del"));
      text.append(element("span", "cursor"));
      byId("status").textContent = action
        ? `Action ${time} of ${count}: ${describe(action, hits[time - 1])}`
        : `Before the first of ${count} actions`;
    } else {
      byId("status").textContent = "";
    }
    for (const node of byId("strip").children) {
      const at = Number(node.dataset.time);
      node.classList.toggle("past", at <= time);
      node.classList.toggle("now", at === time && time > 0);
      node.classList.toggle("struck", Boolean(node.piece) && node.piece.died <= time);
    }
    byId("position").value = String(time);
    byId("position").setAttribute("aria-valuetext", byId("status").textContent);
  }

  function pause() {
    clearInterval(timer);
    timer = 0;
    byId("play").textContent = "Play";
    byId("play").setAttribute("aria-label", "Play");
    byId("status").setAttribute("aria-live", "polite");
  }

  function play() {
    if (!sample) return;
    if (time >= sample.actions.length) moveTo(0);
    clearInterval(timer);
    byId("play").textContent = "Pause";
    byId("play").setAttribute("aria-label", "Pause");
    byId("status").setAttribute("aria-live", "off");
    timer = setInterval(() => {
      moveTo(time + 1);
      if (time >= sample.actions.length) pause();
    }, 1000 / Number(byId("speed").value));
  }

  const MOVES = {
    ArrowLeft: () => time - 1,
    ArrowRight: () => time + 1,
    Home: () => 0,
    End: () => Infinity,
  };
  function step(key) {
    pause();
    moveTo(MOVES[key]());
  }

  // Keys act inside the viewer, and arrows also where nothing has the focus; never within a control
  // that has its own use for them.
  function onKey(event) {
    const inside = byId("viewer").contains(event.target);
    const own = event.target.matches("select, input, summary, a");
    if (own || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const idle = event.target === document.body && event.key.startsWith("Arrow");
    if (event.key in MOVES && (inside || idle)) {
      step(event.key);
    } else if (event.key === " " && inside && !event.target.matches("button")) {
      if (timer) pause(); else play();
    } else {
      return;
    }
    event.preventDefault();
  }

  if (byId("viewer") && places.length) {
    fill(byId("run"), runs.map((run, index) => [index, run.name]));
    fill(byId("filter"), FILTERS.map(([name], index) => [index, name]));
    fill(byId("speed"), SPEEDS.map((speed) => [speed, `${speed} actions/s`]), 8);
    byId("run").addEventListener("change", chooseRun);
    byId("step").addEventListener("change", chooseStep);
    byId("filter").addEventListener("change", chooseStep);
    byId("sample").addEventListener("change", chooseSample);
    byId("speed").addEventListener("change", () => { if (timer) play(); });
    byId("play").addEventListener("click", () => { if (timer) pause(); else play(); });
    const buttons = { first: "Home", back: "ArrowLeft", forward: "ArrowRight", last: "End" };
    for (const [id, key] of Object.entries(buttons)) {
      byId(id).addEventListener("click", () => step(key));
    }
    byId("position").addEventListener("input", (event) => {
      pause();
      moveTo(Number(event.target.value));
    });
    byId("strip").addEventListener("click", (event) => {
      const node = event.target.closest(".chip");
      if (node) { pause(); moveTo(Number(node.dataset.time)); }
    });
    document.addEventListener("keydown", onKey);
    // Open on the newest step of the last run that takes something back.
    const shows = (run) =>
      run.steps.at(-1)?.samples.findIndex((each) => backspaces(each) > 0) ?? -1;
    const start = Math.max(runs.findLastIndex((run) => shows(run) >= 0),
      runs.findIndex((run) => run.steps.length && !runs.some((each) => shows(each) >= 0)));
    byId("run").value = String(start);
    chooseRun();
    if (shows(runs[start]) >= 0) {
      byId("sample").value = String(shows(runs[start]));
      chooseSample();
    }
  }
  root.dataset.ready = "true";
})();
