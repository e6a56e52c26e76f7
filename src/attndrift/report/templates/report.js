"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function option(select, value, text, run) {
    const element = document.createElement("option");
    if (run !== undefined) element.dataset.run = run;
    element.value = value;
    element.textContent = text;
    select.append(element);
  }
  function notes(list, texts) {
    list.hidden = texts.length === 0;
    for (const text of texts) {
      const element = document.createElement("li");
      element.textContent = text;
      list.append(element);
    }
  }
  const name = (run) => (run.what ? run.run + " (" + run.what + ")" : run.run);
  // Four significant digits; a minus sign rather than a hyphen.
  const shown = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3)))).replace("-", "\u2212");
  const signed = (value) => (value > 0 ? "+" : "") + shown(value);

  // Blue to red through white (ColorBrewer RdBu, safe for colour-blind readers); 0 is the middle.
  const DIVERGING = [[33, 102, 172], [103, 169, 207], [209, 229, 240], [247, 247, 247], [253, 219, 199], [239, 138, 98], [178, 24, 43]];
  // Dark to light (viridis).
  const SEQUENTIAL = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
  function colour(scale, share) {
    const place = Math.max(0, Math.min(1, share)) * (scale.length - 1);
    const low = Math.min(Math.floor(place), scale.length - 2);
    const part = place - low;
    return scale[low].map((value, index) => Math.round(value + part * (scale[low + 1][index] - value)));
  }
  // Black is the better ink where this is above 0.179 (WCAG).
  const luminance = (parts) => parts.map((part) => (part / 255) ** 2.2).reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const rgb = (parts) => "rgb(" + parts.join(",") + ")";

  function sharpen(canvas, width, height) {
    const ratio = Math.max(1, window.devicePixelRatio || 1);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    return context;
  }
  function legend(context, scale, x, y, width, labels) {
    for (let step = 0; step < width; step += 1) {
      context.fillStyle = rgb(colour(scale, step / Math.max(1, width - 1)));
      context.fillRect(x + step, y, 1.5, 10);
    }
    context.fillStyle = ink("--ink");
    context.textBaseline = "top";
    labels.forEach((label, index) => {
      context.textAlign = index === 0 ? "left" : index === labels.length - 1 ? "right" : "center";
      context.fillText(label, x + (width * index) / (labels.length - 1), y + 13);
    });
  }

  // ---- the table of runs
  function runTable(table) {
    const headings = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows];
    const plain = rows.map((row) => [...row.cells].map((cell) => cell.textContent));
    const words = plain.map((cells) => cells.join(" ").toLowerCase());
    headings.forEach((heading, index) => {
      heading.querySelector("button").addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach((other) => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const numeric = heading.classList.contains("number");
        const key = (place) => {
          const number = rows[place].cells[index].dataset.n;
          return numeric ? (number === undefined ? null : Number(number)) : plain[place][index];
        };
        const keyed = rows.map((row, place) => [key(place), row]);
        keyed.sort(([a], [b]) => {
          // What was not measured stands last in both directions.
          if (a === null || b === null) return (a === null) - (b === null);
          const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
          return up ? order : -order;
        });
        table.tBodies[0].append(...keyed.map(([, row]) => row));
      });
    });
    const filter = byId("run-filter");
    const count = byId("run-count");
    const show = () => {
      const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let visible = 0;
      rows.forEach((row, place) => {
        row.hidden = !wanted.every((word) => words[place].includes(word));
        visible += row.hidden ? 0 : 1;
      });
      count.textContent = visible + " of " + rows.length + " runs";
    };
    filter.addEventListener("input", show);
    show();
    for (const box of document.querySelectorAll("#run-columns input")) {
      const pick = () => {
        for (const row of [table.tHead.rows[0], ...rows]) row.cells[box.dataset.column].hidden = !box.checked;
      };
      box.addEventListener("change", pick);
      pick();
    }
    byId("run-csv").addEventListener("click", () => {
      const quoted = (text) => (/[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
      // A leading = + - @ would be a formula in a spreadsheet; numbers keep their sign.
      const safe = (text) => (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text);
      const chosen = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => rows.indexOf(row));
      const names = headings.map((heading) => heading.querySelector("button").firstChild.textContent);
      const values = (place) => plain[place].map((text, index) => rows[place].cells[index].dataset.n ?? safe(text));
      const text = [names, ...chosen.map(values)].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = "runs.csv";
      link.click();
    });
    return linked(headings, rows);
  }
  // From a row to the curves and maps of its run.
  function linked(headings, rows) {
    const index = headings.findIndex((heading) => heading.querySelector("button").firstChild.textContent === "Run");
    if (index < 0) return;
    for (const [id, place, word] of [["heat-run", "#heatmap", "curves"], ["map-run", "#map-tool", "maps"]]) {
      const select = byId(id);
      if (!select || !select.options.length) continue;
      const known = new Map([...select.options].map((one) => [one.dataset.run, one.value]));
      for (const row of rows) {
        const run = row.cells[index].firstChild?.textContent;
        if (!known.has(run)) continue;
        const link = document.createElement("a");
        link.href = place;
        link.textContent = word;
        link.setAttribute("aria-label", word + " of " + run);
        link.addEventListener("click", () => {
          select.value = known.get(run);
          select.dispatchEvent(new Event("change"));
        });
        row.cells[index].append(" ", link);
      }
    }
  }

  // ---- heatmaps: a table, so that every value can be read, copied and printed
  function heatmap() {
    const data = read("heat-data");
    const [runs, metrics, table] = [byId("heat-run"), byId("heat-metric"), byId("heat-table")];
    notes(byId("heat-notes"), data.notes);
    if (!data.runs.length) {
      byId("heatmap").querySelector(".controls").hidden = true;
      table.parentElement.hidden = true;
      byId("heat-readout").textContent = "The tables hold no values per block and step, so there is no heatmap.";
      return;
    }
    data.runs.forEach((run, index) => option(runs, index, name(run), run.run));
    const known = data.metrics.filter((m) => data.runs.some((run) => run.metrics[m.name]));
    known.forEach((m) => option(metrics, m.name, m.label));
    const far = (metric, value) => Math.abs(metric.value ? 1 - value : value);
    const most = (metric, part) => Math.max(0, ...part.values.flat().map((value) => (value === null ? 0 : far(metric, value))));
    function cell(row, kind, text) {
      const element = document.createElement(kind);
      element.textContent = text;
      if (kind === "th") element.scope = row.parentElement.tagName === "THEAD" ? "col" : "row";
      row.append(element);
      return element;
    }
    // One line a quantity, with its first and last value in words.
    function curve(one) {
      const [width, height, pad] = [240, 90, 16];
      const points = one.steps.map((step, place) => [step, one.values[place]]).filter((point) => point[1] !== null);
      const [low, high] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
      const [first, last] = [points[0][0], points.at(-1)[0]];
      const x = (step) => 4 + (width - 8) * (step - first) / (last - first || 1);
      const y = (value) => height - pad - (height - 2 * pad) * (value - low) / (high - low || 1);
      const said = one.label + ": " + shown(points[0][1]) + " at step " + first + ", " + shown(points.at(-1)[1]) + " at step " + last;
      const make = (kind, attributes, text = "") => {
        const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
        for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
        element.textContent = text;
        return element;
      };
      const image = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
      image.append(
        make("polyline", { points: points.map((p) => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ") }),
        make("text", { x: 4, y: 11 }, shown(high)), make("text", { x: 4, y: height - 3 }, shown(low)),
        make("text", { x: width - 4, y: height - 3, "text-anchor": "end" }, "step " + last));
      const caption = document.createElement("figcaption");
      caption.textContent = said;
      const figure = document.createElement("figure");
      figure.append(image, caption);
      return figure;
    }
    function draw() {
      const run = data.runs[runs.value];
      byId("heat-curves").replaceChildren(...run.curves.map(curve));
      const metric = known.find((m) => m.name === metrics.value);
      const part = run.metrics[metric.name];
      table.replaceChildren();
      if (!part) {
        byId("heat-readout").textContent = "This metric was not recorded for this run.";
        return;
      }
      const parts = byId("heat-shared").checked ? data.runs.map((r) => r.metrics[metric.name]).filter(Boolean) : [part];
      const limit = Math.max(...parts.map((one) => most(metric, one))) || 1;
      const head = table.createTHead().insertRow();
      cell(head, "th", "block \u2216 step");
      part.steps.forEach((step) => cell(head, "th", step));
      const body = table.createTBody();
      // Block 1 at the bottom: depth rises.
      part.layers.map((layer, place) => [layer, part.values[place]]).reverse().forEach(([layer, line]) => {
        const row = body.insertRow();
        cell(row, "th", layer);
        line.forEach((value) => {
          const element = cell(row, "td", value === null ? "\u2013" : metric.value ? value.toFixed(3) : signed(value));
          if (value === null) return;
          const parts = colour(DIVERGING, 0.5 + (metric.value ? far(metric, value) : value) / limit / 2);
          element.style.background = rgb(parts);
          element.style.color = luminance(parts) > 0.179 ? "#000" : "#fff";
        });
      });
      const last = part.values.at(-1).at(-1);
      byId("heat-readout").textContent = metric.label + (metric.value ? "" : ", from step 0") + ", " + name(run) + ". Last block at the last step: "
        + (last === null ? "not measured" : metric.value ? last.toFixed(3) : signed(last) + "%") + ".";
    }
    for (const control of [runs, metrics, byId("heat-shared")]) control.addEventListener("change", draw);
    const busy = data.runs.findIndex((run) => known.some((m) => run.metrics[m.name] && most(m, run.metrics[m.name]) > 0));
    if (busy >= 0) runs.value = busy;
    draw();
  }

  // ---- attention maps
  function bytes(text) {
    const raw = atob(text);
    const result = new Uint8Array(raw.length);
    for (let index = 0; index < raw.length; index += 1) result[index] = raw.charCodeAt(index);
    return result;
  }
  function attention() {
    const data = read("map-data");
    const [runs, images, layer, heads, over] = ["map-run", "map-image", "map-layer", "map-head", "map-picture"].map(byId);
    notes(byId("map-notes"), data.notes);
    if (!data.runs.length) {
      byId("map-tool").querySelector(".controls").hidden = true;
      byId("map-tool").querySelector(".panels").hidden = true;
      byId("map-legend").hidden = true;
      byId("map-readout").textContent = "No attention maps lie beside these tables.";
      return;
    }
    const ready = new Map();
    const maps = (index) => {
      if (!ready.has(index)) {
        const item = data.maps[index];
        ready.set(index, { codes: bytes(item.codes), top: new Float32Array(bytes(item.top).buffer) });
      }
      return ready.get(index);
    };
    const pictures = data.images.map((source) => {
      const picture = new Image();
      picture.addEventListener("load", () => draw());
      picture.src = source;
      return picture;
    });
    data.runs.forEach((run, index) => option(runs, index, name(run), run.run));
    const current = () => data.runs[runs.value];
    function values(index, image, block, head) {
      const run = current();
      const count = run.grid[0] * run.grid[1];
      const { codes, top } = maps(index);
      const one = (which) => {
        const place = (image * run.layers + block) * run.heads + which;
        return Array.from(codes.subarray(place * count, (place + 1) * count), (code) => (code / 255) * top[place]);
      };
      if (head >= 0) return one(head);
      const sum = new Array(count).fill(0);
      for (let which = 0; which < run.heads; which += 1) one(which).forEach((value, index) => { sum[index] += value / run.heads; });
      return sum;
    }
    function fill() {
      const run = current();
      const [image, head] = [images.value, heads.value];
      images.replaceChildren();
      run.names.forEach((label, index) => option(images, index, index + 1 + ": " + label));
      if (image !== "" && Number(image) < run.names.length) images.value = image;
      heads.replaceChildren();
      option(heads, -1, "mean of all");
      for (let index = 0; index < run.heads; index += 1) option(heads, index, index + 1);
      if (head !== "" && Number(head) < run.heads) heads.value = head;
      const last = Number(layer.max) === Number(layer.value);
      layer.max = run.layers;
      // The last block is what the embedding is read from, so it is shown first.
      if (last || Number(layer.value) > run.layers) layer.value = run.layers;
    }
    function paint(id, grid, list, colours, limit, centred, alpha, picture) {
      const canvas = byId(id);
      const context = canvas.getContext("2d");
      const [wide, high] = [canvas.width / grid[1], canvas.height / grid[0]];
      context.globalAlpha = 1;
      context.clearRect(0, 0, canvas.width, canvas.height);
      if (picture && picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      if (!list) return;
      context.globalAlpha = picture ? alpha : 1;
      list.forEach((value, index) => {
        const share = centred ? 0.5 + value / limit / 2 : value / limit;
        context.fillStyle = rgb(colour(colours, share));
        context.fillRect((index % grid[1]) * wide, Math.floor(index / grid[1]) * high, wide, high);
      });
      context.globalAlpha = 1;
    }
    function entropy(list) {
      const total = list.reduce((sum, value) => sum + value, 0);
      return -list.reduce((sum, value) => sum + (value > 0 ? (value / total) * Math.log(value / total) : 0), 0);
    }
    function draw() {
      const run = current();
      const [image, block, head] = [Number(images.value), Number(layer.value) - 1, Number(heads.value)];
      byId("map-layer-out").textContent = block + 1;
      const before = values(run.before, image, block, head);
      const after = values(run.after, image, block, head);
      const limit = Math.max(...before, ...after) || 1;
      const change = after.map((value, index) => value - before[index]);
      const swing = Math.max(...change.map(Math.abs));
      const picture = pictures[run.images[image]];
      const under = over.checked ? picture : null;
      paint("map-plain", run.grid, null, null, 1, false, 1, picture);
      paint("map-before", run.grid, before, SEQUENTIAL, limit, false, 0.65, under);
      paint("map-after", run.grid, after, SEQUENTIAL, limit, false, 0.65, under);
      paint("map-change", run.grid, change, DIVERGING, swing || 1, true, 1, null);
      const canvas = byId("map-legend");
      const width = Math.max(240, Math.min(700, canvas.parentElement.clientWidth - 32));
      const context = sharpen(canvas, width, 46);
      const half = (width - 40) / 2;
      const small = width < 480;
      legend(context, SEQUENTIAL, 2, 4, half, ["0", small ? "" : "attention a patch", shown(limit)]);
      legend(context, DIVERGING, half + 36, 4, half, ["\u2212" + shown(swing), "0", "+" + shown(swing)]);
      const where = "block " + (block + 1) + ", " + (head < 0 ? "mean of " + run.heads + " heads" : "head " + (head + 1));
      const text = name(run) + ", " + run.names[image] + ", " + where + ": entropy " + entropy(before).toFixed(3) + " nats before, " + entropy(after).toFixed(3) + " after; largest value " + shown(Math.max(...before)) + " before, " + shown(Math.max(...after)) + " after.";
      byId("map-readout").textContent = text;
      byId("map-plain").setAttribute("aria-label", "Probe image: " + run.names[image]);
      for (const id of ["map-before", "map-after", "map-change"]) byId(id).setAttribute("aria-label", id.slice(4) + ": " + text);
    }
    notes(byId("map-notes"), ["Both maps share one colour scale from 0 to the larger maximum of the two, the legend's right end. Each map is stored in 256 steps of its own maximum, so a value is off by at most 1/510 of that maximum."]);
    runs.addEventListener("change", () => { fill(); draw(); });
    for (const control of [images, heads, over]) control.addEventListener("change", draw);
    layer.addEventListener("input", draw);
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    const adapted = data.runs.findIndex((run) => run.before !== run.after);
    if (adapted >= 0) runs.value = adapted;
    fill();
    draw();
  }

  // ---- the page itself
  function currentSection() {
    const links = [...document.querySelectorAll("nav a")];
    const parts = links.map((link) => byId(link.hash.slice(1)));
    const mark = () => {
      const passed = parts.filter((part) => part.getBoundingClientRect().top < 120).length;
      const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
      const now = end && scrollY > 0 ? links.length - 1 : Math.max(0, passed - 1);
      links.forEach((link, index) => (index === now ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  }
  // A link into the appendix opens what it points to.
  function unfold() {
    const target = location.hash && byId(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    target.scrollIntoView();
  }

  heatmap();
  attention();
  const table = byId("run-table");
  if (table) runTable(table);
  currentSection();
  addEventListener("hashchange", unfold);
  unfold();
})();
