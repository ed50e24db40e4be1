// The interactive part of the report: where in an image does each checkpoint see a typed word?
// data: {pngs: [URI], words: [[word]], checkpoints: [{title, words: which list, images: [{png: which, grid: [rows, columns],
// size: [width, height], regions: [{label, lines: [[x, y, ...]]}], cosine: {scale, bytes}: word by word, entry: nearest of
// the object vocabulary for each patch, which of pool, judged: 1 right, 0 wrong, -1 no label, pool: [word], nearest: [[which of pool]],
// nearestCosine}]}], images: [{name, caption}], start: word, heat: [colour], colours}
// #word=red&image=2&view=pieces in the address opens the page there.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, parent, text) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const same = (text) => text.trim().toLowerCase().replace(/\s+/g, " ");
  const lists = data.words.map((words) => new Map(words.map((word, number) => [same(word), number])));
  const state = { image: 0, word: data.start, view: "heat", patch: null };

  const unpack = (packed) => {
    if (!packed.values) {
      const text = atob(packed.bytes);
      packed.values = new Float32Array(text.length);
      for (let i = 0; i < text.length; i++) {
        packed.values[i] = ((text.charCodeAt(i) << 24) >> 24) * packed.scale / 127;
      }
    }
    return packed.values;
  };
  const pictures = data.pngs.map((uri) => {
    const picture = new Image();
    picture.onload = () => draw();
    picture.src = uri;
    return picture;
  });
  const heat = data.heat.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const colour = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (heat.length - 1);
    const low = Math.floor(at), high = Math.min(low + 1, heat.length - 1);
    return `rgb(${heat[low].map((part, i) => Math.round(part + (heat[high][i] - part) * (at - low))).join(",")})`;
  };
  const number = (value) => value.toFixed(2).replace("-", "\u2212");

  // the cosines of one checkpoint's patches with the word, or null where the word is not embedded
  const cosines = (checkpoint, which = state.image) => {
    const column = lists[checkpoint.words].get(same(state.word));
    if (column === undefined) return null;
    const image = checkpoint.images[which];
    const patches = image.grid[0] * image.grid[1];
    return unpack(image.cosine).subarray(column * patches, (column + 1) * patches);
  };

  const sketch = (canvas, image, grey = false) => {  // a canvas in the image's own coordinates
    const width = canvas.clientWidth || 248;
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${width * image.size[1] / image.size[0]}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(canvas.width * image.size[1] / image.size[0]);
    const pen = canvas.getContext("2d");
    const zoom = canvas.width / image.size[0];
    pen.scale(zoom, zoom);
    pen.imageSmoothingEnabled = image.size[0] > 128;
    const picture = pictures[image.png];
    if (grey) pen.filter = "grayscale(1)";  // or the image's colours mix with the map's
    if (picture.complete && picture.naturalWidth) pen.drawImage(picture, 0, 0, image.size[0], image.size[1]);
    pen.filter = "none";
    return [pen, zoom / ratio];  // image pixels -> CSS pixels
  };
  const outline = (pen, image, zoom, labelled) => {
    pen.lineJoin = "round";
    image.regions.forEach((region, number) => {
      for (const [style, width] of [["#fff", 3.6], [data.colours.regions[number % data.colours.regions.length], 1.8]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width / zoom;
        for (const line of region.lines) {
          pen.beginPath();
          for (let i = 0; i < line.length; i += 2) pen.lineTo(line[i], line[i + 1]);
          pen.stroke();
        }
      }
      if (!labelled || !region.lines.length) return;
      const points = region.lines.flat();
      const xs = points.filter((_, i) => i % 2 === 0), ys = points.filter((_, i) => i % 2 === 1);
      pen.font = `bold ${12 / zoom}px Arial, sans-serif`;
      pen.textAlign = "center";
      const half = pen.measureText(region.label).width / 2;
      const middle = (Math.min(...xs) + Math.max(...xs)) / 2;
      const x = Math.min(Math.max(middle, half), Math.max(image.size[0] - half, half));
      const y = Math.max(Math.min(...ys) - 4 / zoom, 12 / zoom);
      pen.lineWidth = 3 / zoom;
      pen.strokeStyle = "#fff";
      pen.strokeText(region.label, x, y);
      pen.fillStyle = data.colours.regions[number % data.colours.regions.length];
      pen.fillText(region.label, x, y);
    });
  };
  const cells = (image, visit) => {
    const [rows, columns] = image.grid;
    const width = image.size[0] / columns, height = image.size[1] / rows;
    for (let patch = 0; patch < rows * columns; patch++) {
      visit(patch, (patch % columns) * width, Math.floor(patch / columns) * height, width, height);
    }
  };
  const paintWords = (pen, image, zoom) => {
    pen.fillStyle = "rgba(255,255,255,.68)";
    pen.fillRect(0, 0, ...image.size);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const pieces = state.view === "pieces";
    cells(image, (patch, x, y, width, height) => {
      if (image.judged[patch] >= 0) {
        pen.strokeStyle = image.judged[patch] ? data.colours.right : data.colours.wrong;
        pen.setLineDash(image.judged[patch] ? [] : [3 / zoom, 2 / zoom]);
        pen.lineWidth = 1.6 / zoom;
        pen.strokeRect(x + .06 * width, y + .06 * height, .88 * width, .88 * height);
        pen.setLineDash([]);
      }
      const full = image.pool[pieces ? image.nearest[patch][0] : image.entry[patch]];
      if (full === undefined) return;
      const word = full.length > 10 ? full.slice(0, 9) + "\u2026" : full;
      pen.fillStyle = "#111";
      pen.font = `${Math.min(11 / zoom, height * .5, width / (.56 * Math.max(word.length, 3)))}px Arial, sans-serif`;
      pen.fillText(word, x + width / 2, y + height / 2);
    });
  };
  const told = (checkpoint) => {
    const image = checkpoint.images[state.image];
    if (state.patch === null || state.patch >= image.grid[0] * image.grid[1]) return "";
    const values = cosines(checkpoint);
    const row = Math.floor(state.patch / image.grid[1]), column = state.patch % image.grid[1];
    const near = unpack(image.nearestCosine), k = image.nearest[state.patch].length;
    const words = image.nearest[state.patch].map((which, i) => `${image.pool[which]} ${number(near[state.patch * k + i])}`);
    const own = values ? `${state.word} ${number(values[state.patch])}. ` : "";
    const entry = image.pool[image.entry[state.patch]];
    const vocabulary = entry === undefined ? "" : ` Object vocabulary: ${entry}.`;
    return `Row ${row + 1}, column ${column + 1}: ${own}Nearest: ${words.join(", ")}.${vocabulary}`;
  };

  const panels = [];
  const panel = (title) => {
    const box = make("div", $("panels"));
    box.className = "panel";
    make("h4", box, title);
    const canvas = make("canvas", box);
    return { canvas, words: make("p", box) };
  };
  const base = panel("image");
  data.checkpoints.forEach((checkpoint) => panels.push({ ...panel(checkpoint.title), checkpoint }));

  const say = () => {
    const box = $("message");
    box.replaceChildren();
    const word = same(state.word);
    const known = lists.some((list) => list.has(word));
    const offer = (words) => words.forEach((one) => {
      make("button", box, one).onclick = () => { $("word").value = one; choose(one); };
    });
    if (state.view !== "heat") return;
    if (!word) {
      box.append("Type a word. For instance: ");
      offer(data.words[0].slice(0, 8));
    } else if (!known) {
      const all = [...new Set(data.words.flat())];
      const parts = word.split(" ");
      const near = all.filter((one) => parts.includes(same(one)) || same(one).startsWith(word) || word.startsWith(same(one)));
      box.append(`\u201c${state.word.trim()}\u201d is not among the ${all.length} words of this page, so it has no map. `
        + `A run with a vocabulary that has it (--vocabulary_path) shows it. ${near.length ? "Here are: " : "For instance: "}`);
      offer((near.length ? near : all).slice(0, 12));
    } else if (!lists.every((list) => list.has(word))) {
      box.append("Some checkpoints of this run do not have this word.");
    }
  };
  // a labelled patch, so that the first thing to read under the maps means something
  const labelled = () => {
    const at = data.checkpoints[0].images[state.image].judged.findIndex((verdict) => verdict >= 0);
    return at < 0 ? null : at;
  };
  const draw = () => {
    say();
    const first = data.checkpoints[0].images[state.image];
    const [pen, zoom] = sketch(base.canvas, first);
    outline(pen, first, zoom, true);
    mark(pen, first, zoom);
    base.words.textContent = [data.images[state.image].name, data.images[state.image].caption].filter(Boolean).join(": ");
    const maps = panels.map((one) => (state.view === "heat" ? cosines(one.checkpoint) : null));
    const ends = (maps) => {
      let low = Infinity, high = -Infinity;
      for (const map of maps.filter(Boolean)) for (const value of map) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
      return low <= high ? [low, high] : null;
    };
    // over all images: a word that this one does not show stays dark
    const shared = ends(state.view === "heat" ? panels.flatMap((one) => data.images.map((_, i) => cosines(one.checkpoint, i))) : []);
    const strength = $("strength").value / 100;
    panels.forEach((one, i) => {
      const image = one.checkpoint.images[state.image];
      const [pen, zoom] = sketch(one.canvas, image, maps[i] !== null);
      let range = "";
      if (maps[i]) {
        const [low, high] = $("shared").checked ? shared : ends([maps[i]]);
        pen.globalAlpha = strength;
        cells(image, (patch, x, y, width, height) => {
          pen.fillStyle = colour(high > low ? (maps[i][patch] - low) / (high - low) : .5);
          pen.fillRect(x, y, width + .02, height + .02);
        });
        pen.globalAlpha = 1;
        if (!$("shared").checked) range = ` (${number(low)} to ${number(high)})`;
      } else if (state.view !== "heat") {
        paintWords(pen, image, zoom);
      }
      if (maps[i]) outline(pen, image, zoom, false);
      mark(pen, image, zoom);
      one.canvas.previousSibling.textContent = one.checkpoint.title + range;
      one.canvas.setAttribute("aria-label", `${one.checkpoint.title}, ${state.view === "heat" ? state.word : state.view}`);
      one.words.textContent = told(one.checkpoint);
    });
    legend(state.view === "heat" ? shared : null);
    document.querySelectorAll("#thumbs button").forEach((one, i) => one.setAttribute("aria-pressed", i === state.image));
  };
  const mark = (pen, image, zoom) => {
    if (state.patch === null) return;
    cells(image, (patch, x, y, width, height) => {
      if (patch !== state.patch) return;
      for (const [style, line] of [["#fff", 4], ["#000", 1.6]]) {
        pen.strokeStyle = style;
        pen.lineWidth = line / zoom;
        pen.strokeRect(x, y, width, height);
      }
    });
  };
  const legend = (ends) => {
    const box = $("scale");
    box.replaceChildren();
    if (state.view !== "heat") {
      box.append("Frames: labelled patches. Blue, solid: the nearest word of the object vocabulary is right; orange, dashed: it is not.");
      return;
    }
    if (!ends) return;
    const bar = document.createElement("canvas");
    bar.width = 220;
    bar.height = 12;
    const pen = bar.getContext("2d");
    for (let x = 0; x < 220; x++) {
      pen.fillStyle = colour(x / 219);
      pen.fillRect(x, 0, 1, 12);
    }
    const own = !$("shared").checked;
    box.append(own ? "each map: lowest" : `cosine ${number(ends[0])}`, bar, own ? "highest cosine" : number(ends[1]));
  };

  const choose = (word) => { state.word = word; draw(); };
  const point = (event, canvas, image) => {
    const box = canvas.getBoundingClientRect();
    const [rows, columns] = image.grid;
    const row = Math.floor((event.clientY - box.top) / box.height * rows);
    const column = Math.floor((event.clientX - box.left) / box.width * columns);
    const patch = Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
    if (patch !== state.patch) { state.patch = patch; draw(); }
  };
  for (const one of [{ canvas: base.canvas, checkpoint: data.checkpoints[0] }, ...panels]) {
    one.canvas.addEventListener("pointermove", (event) => point(event, one.canvas, one.checkpoint.images[state.image]));
    one.canvas.addEventListener("pointerdown", (event) => point(event, one.canvas, one.checkpoint.images[state.image]));
  }
  $("panels").addEventListener("keydown", (event) => {
    const [rows, columns] = data.checkpoints[0].images[state.image].grid;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const now = state.patch === null ? 0 : state.patch;
    const row = Math.min(Math.max(Math.floor(now / columns) + step[0], 0), rows - 1);
    const column = Math.min(Math.max(now % columns + step[1], 0), columns - 1);
    state.patch = row * columns + column;
    draw();
  });
  $("word").addEventListener("input", (event) => choose(event.target.value));
  $("word").addEventListener("focus", (event) => event.target.select());
  $("shared").addEventListener("change", draw);
  $("strength").addEventListener("input", draw);
  const resize = () => {
    $("panels").style.setProperty("--side", `${$("size").value}px`);
    draw();
  };
  $("size").addEventListener("input", resize);
  document.querySelectorAll("input[name=view]").forEach((one) => one.addEventListener("change", () => {
    state.view = one.value;
    draw();
  }));
  data.images.forEach((image, i) => {
    const button = make("button", $("thumbs"));
    button.title = image.name;
    const picture = make("img", button);
    picture.alt = image.name;
    picture.src = data.pngs[data.checkpoints[0].images[i].png];
    button.onclick = () => { state.image = i; state.patch = labelled(); draw(); };
  });
  window.addEventListener("resize", draw);

  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has("word")) state.word = $("word").value = wanted.get("word");
  if (wanted.has("image")) state.image = Math.min(Math.max(parseInt(wanted.get("image"), 10) || 0, 0), data.images.length - 1);
  const view = [...document.querySelectorAll("input[name=view]")].find((one) => one.value === wanted.get("view"));
  if (view) { view.checked = true; state.view = view.value; }
  state.patch = wanted.has("patch") ? parseInt(wanted.get("patch"), 10) || 0 : labelled();
  if (data.checkpoints[0].images.some((image) => image.grid[1] > 14)) $("size").value = 480;  // words need room
  resize();
})();
