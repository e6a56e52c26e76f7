"use strict";
(() => {
  const errors = [];
  addEventListener("error", (event) => errors.push(String(event.message)));
  addEventListener("securitypolicyviolation", (event) => errors.push("blocked: " + event.violatedDirective));
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function option(select, value, text) {
    const element = document.createElement("option");
    element.value = value;
    element.textContent = text;
    select.append(element);
  }
  function notes(list, texts) {
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
  function sortable(table) {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const original = [...body.rows];
    headings.forEach((heading, index) => {
      heading.querySelector("button").addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach((other) => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const numeric = heading.classList.contains("number");
        const key = (row) => {
          const cell = row.cells[index];
          if (!numeric) return cell.textContent;
          return cell.dataset.n === undefined ? null : Number(cell.dataset.n);
        };
        const keyed = original.map((row) => [key(row), row]);
        keyed.sort(([a], [b]) => {
          // What was not measured stands last in both directions.
          if (a === null || b === null) return (a === null) - (b === null);
          const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
          return up ? order : -order;
        });
        body.append(...keyed.map(([, row]) => row));
      });
    });
    const filter = byId("run-filter");
    const count = byId("run-count");
    const show = () => {
      const wanted = filter.value.trim().toLowerCase();
      let visible = 0;
      for (const row of original) {
        row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
        visible += row.hidden ? 0 : 1;
      }
      count.textContent = visible + " of " + original.length + " runs";
    };
    filter.addEventListener("input", show);
    show();
  }

  // ---- heatmaps
  function heatmap() {
    const data = read("heat-data");
    const canvas = byId("heat-canvas");
    const [runs, metrics] = [byId("heat-run"), byId("heat-metric")];
    notes(byId("heat-notes"), data.notes);
    if (!data.runs.length) {
      byId("heatmap").querySelector(".controls").hidden = true;
      canvas.hidden = true;
      byId("heat-readout").textContent = "The tables hold no values per layer and step, so there is no heatmap.";
      return;
    }
    data.runs.forEach((run, index) => option(runs, index, name(run)));
    data.metrics.filter((m) => data.runs.some((run) => run.metrics[m.name])).forEach((m) => option(metrics, m.name, m.label));
    let cells = null;
    const most = (part) => Math.max(0, ...part.values.map((line) => Math.max(0, ...line.map((v) => Math.abs(v ?? 0)))));
    function draw() {
      const run = data.runs[runs.value];
      const part = run.metrics[metrics.value];
      const width = Math.max(260, Math.min(900, canvas.parentElement.clientWidth - 32));
      if (!part) {
        sharpen(canvas, width, 40);
        byId("heat-readout").textContent = "This metric was not recorded for this run.";
        cells = null;
        return;
      }
      const shared = byId("heat-shared").checked;
      const parts = shared ? data.runs.map((r) => r.metrics[metrics.value]).filter(Boolean) : [part];
      const limit = Math.max(...parts.map(most)) || 1;
      const size = Math.max(16, Math.min(26, 320 / part.layers.length));
      const [left, top] = [44, 8];
      const right = 10;
      const wide = (width - left - right) / part.steps.length;
      const high = size * part.layers.length;
      const context = sharpen(canvas, width, top + high + 84);
      part.values.forEach((line, row) => line.forEach((value, column) => {
        context.fillStyle = value === null ? ink("--none") : rgb(colour(DIVERGING, 0.5 + value / limit / 2));
        // Block 1 at the bottom: depth rises.
        context.fillRect(left + column * wide, top + (part.layers.length - 1 - row) * size, wide + 0.5, size + 0.5);
      }));
      context.fillStyle = ink("--ink");
      context.textBaseline = "middle";
      context.textAlign = "right";
      part.layers.forEach((layer, row) => context.fillText(layer, left - 6, top + (part.layers.length - 0.5 - row) * size));
      context.save();
      context.translate(10, top + high / 2);
      context.rotate(-Math.PI / 2);
      context.textAlign = "center";
      context.fillText("block", 0, 0);
      context.restore();
      context.textBaseline = "top";
      const every = Math.max(1, Math.ceil(part.steps.length / Math.max(2, Math.floor(width / 70))));
      part.steps.forEach((step, column) => {
        if (column % every) return;
        context.textAlign = "center";
        context.fillText(step, left + (column + 0.5) * wide, top + high + 4);
      });
      context.textAlign = "center";
      context.fillText("optimiser step", left + (width - left - right) / 2, top + high + 20);
      const bar = Math.min(320, width - left - right);
      legend(context, DIVERGING, left, top + high + 46, bar, ["\u2212" + shown(limit) + "%", "0", "+" + shown(limit) + "%"]);
      const label = data.metrics.find((m) => m.name === metrics.value).label;
      const last = part.values[part.values.length - 1];
      const end = last[last.length - 1];
      const text = label + " change from step 0, " + name(run) + ". Last block at the last step: " + (end === null ? "not measured" : signed(end) + "%") + ".";
      canvas.setAttribute("aria-label", text);
      byId("heat-readout").textContent = text;
      cells = { part, left, top, wide, size, text };
    }
    canvas.addEventListener("mousemove", (event) => {
      if (!cells) return;
      const box = canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - cells.left) / cells.wide);
      const row = cells.part.layers.length - 1 - Math.floor((event.clientY - box.top - cells.top) / cells.size);
      const line = cells.part.values[row];
      if (!line || line[column] === undefined) return;
      const value = line[column];
      byId("heat-readout").textContent = "Block " + cells.part.layers[row] + ", step " + cells.part.steps[column] + ": " + (value === null ? "not measured" : signed(value) + "%");
    });
    canvas.addEventListener("mouseleave", () => { if (cells) byId("heat-readout").textContent = cells.text; });
    for (const control of [runs, metrics, byId("heat-shared")]) control.addEventListener("change", draw);
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    const busy = data.runs.findIndex((run) => run.metrics.entropy && most(run.metrics.entropy) > 0);
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
      byId("maps").querySelector(".controls").hidden = true;
      byId("maps").querySelector(".panels").hidden = true;
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
    data.runs.forEach((run, index) => option(runs, index, name(run)));
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

  // ---- `#selftest`: the page operates itself and writes what happened into the document
  function selftest() {
    const result = { errors, sorts: [], heat: {}, maps: {}, filter: null };
    const pixels = (id) => byId(id).toDataURL();
    const table = byId("run-table");
    [...table.tHead.rows[0].cells].forEach((heading, index) => {
      for (const direction of ["ascending", "descending"]) {
        heading.querySelector("button").click();
        result.sorts.push({
          heading: heading.textContent, numeric: heading.classList.contains("number"), direction,
          aria: heading.getAttribute("aria-sort"),
          sorted: table.querySelectorAll('[aria-sort="ascending"],[aria-sort="descending"]').length,
          values: [...table.tBodies[0].rows].map((row) => row.cells[index].dataset.n ?? (heading.classList.contains("number") ? null : row.cells[index].textContent)),
        });
      }
    });
    const changes = (id, control, event, canvas) => {
      const element = byId(id);
      const start = control === "value" ? element.value : element.checked;
      const before = pixels(canvas);
      const text = byId(canvas.startsWith("heat") ? "heat-readout" : "map-readout").textContent;
      const options = element.options ? [...element.options].map((o) => o.value) : ["1", element.max];
      const other = control === "value" ? options.find((value) => value !== start) : !start;
      if (other === undefined) return null;
      element[control] = other;
      element.dispatchEvent(new Event(event, { bubbles: true }));
      const readout = byId(canvas.startsWith("heat") ? "heat-readout" : "map-readout").textContent;
      const outcome = { pixels: pixels(canvas) !== before, text: readout !== text };
      element[control] = start;
      element.dispatchEvent(new Event(event, { bubbles: true }));
      outcome.restored = pixels(canvas) === before;
      return outcome;
    };
    if (!byId("heat-canvas").hidden) {
      result.heat = { run: changes("heat-run", "value", "change", "heat-canvas"), metric: changes("heat-metric", "value", "change", "heat-canvas") };
    }
    if (!byId("map-legend").hidden) {
      result.maps = {
        run: changes("map-run", "value", "change", "map-after"),
        image: changes("map-image", "value", "change", "map-before"),
        layer: changes("map-layer", "value", "input", "map-before"),
        head: changes("map-head", "value", "change", "map-before"),
        picture: changes("map-picture", "checked", "change", "map-before"),
        differ: pixels("map-before") !== pixels("map-after"),
        readout: byId("map-readout").textContent,
      };
    }
    const filter = byId("run-filter");
    filter.value = table.tBodies[0].rows[0].cells[0].textContent;
    filter.dispatchEvent(new Event("input"));
    result.filter = byId("run-count").textContent;
    result.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
    byId("selftest").textContent = JSON.stringify(result);
  }

  const table = byId("run-table");
  if (table) sortable(table);
  heatmap();
  attention();
  if (location.hash === "#selftest") addEventListener("load", () => setTimeout(selftest, 50));
})();
