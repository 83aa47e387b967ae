"use strict";
// The map: the nearest sample under the pointer, one class in focus, dots or pictures. Without this script it is a still.
(() => {
  const map = document.getElementById("map");
  if (!map) return;
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const sheet = document.getElementById("sheet");
  const [ring, tip, mosaic] = ["ring", "tip", "mosaic"].map((id) => document.getElementById(id));
  const tipCanvas = tip.querySelector("canvas");
  const columns = Number(map.dataset.columns);
  const side = Number(map.dataset.side);
  let focus = null;
  let pictures = false;
  let tiles = []; // in the mosaic: [x, y, sample] of each picture shown, in pixels

  const draw = (context, sample, x, y, size) =>
    context.drawImage(sheet, (sample % columns) * side, Math.floor(sample / columns) * side, side, side, x, y, size, size);

  function nearest(x, y) {
    const { width, height } = map.getBoundingClientRect();
    let best = -1;
    let least = Infinity;
    const consider = (px, py, sample) => {
      if (focus !== null && data.label[sample] !== focus) return;
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [least, best] = [distance, { sample, x: px, y: py }];
    };
    if (pictures) for (const [px, py, sample] of tiles) consider(px, py, sample);
    else for (let i = 0; i < data.x.length; i++) consider(data.x[i] * width, data.y[i] * height, i);
    return least < 32 ** 2 ? best : null;
  }

  function hide() {
    ring.hidden = tip.hidden = true;
  }

  function show(event) {
    const box = map.getBoundingClientRect();
    const found = nearest(event.clientX - box.left, event.clientY - box.top);
    if (!found) return hide();
    const label = data.label[found.sample];
    document.getElementById("tip-name").textContent = data.names[found.sample];
    document.getElementById("tip-class").textContent = label < 0 ? "" : data.classes[label];
    const context = tipCanvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, tipCanvas.width, tipCanvas.height);
    draw(context, found.sample, 0, 0, tipCanvas.width);
    ring.hidden = tip.hidden = false;
    ring.style.left = found.x + "px";
    ring.style.top = found.y + "px";
    const left = found.x + 20 + tip.offsetWidth > box.width ? found.x - 20 - tip.offsetWidth : found.x + 20;
    tip.style.left = Math.max(0, left) + "px";
    tip.style.top = Math.max(0, Math.min(found.y - 50, box.height - tip.offsetHeight)) + "px";
  }

  // One picture per cell of a grid: the sample nearest to the cell's middle, so that no picture hides another.
  function paint() {
    const { width, height } = map.getBoundingClientRect();
    const size = width < 500 ? 18 : 27;
    const cells = new Map();
    for (let i = 0; i < data.x.length; i++) {
      const [x, y] = [data.x[i] * width, data.y[i] * height];
      const [column, row] = [Math.floor(x / size), Math.floor(y / size)];
      const behind = focus !== null && data.label[i] !== focus ? 1e6 : 0; // the class in focus is seen where it is
      const distance = behind + (x - (column + 0.5) * size) ** 2 + (y - (row + 0.5) * size) ** 2;
      const key = column + " " + row;
      if (!cells.has(key) || cells.get(key).distance > distance) cells.set(key, { distance, column, row, sample: i });
    }
    const ratio = window.devicePixelRatio || 1;
    mosaic.width = width * ratio;
    mosaic.height = height * ratio;
    const context = mosaic.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingQuality = "high";
    tiles = [];
    for (const { column, row, sample } of cells.values()) {
      context.globalAlpha = focus === null || data.label[sample] === focus ? 1 : 0.15;
      draw(context, sample, column * size + 1, row * size + 1, size - 2);
      tiles.push([(column + 0.5) * size, (row + 0.5) * size, sample]);
    }
  }

  const button = document.getElementById("switch");
  button.hidden = false;
  button.addEventListener("click", () => {
    pictures = !pictures;
    map.classList.toggle("pictures", pictures);
    mosaic.hidden = !pictures;
    button.textContent = pictures ? "Show dots" : "Show pictures";
    button.setAttribute("aria-pressed", pictures);
    hide();
    if (pictures) sheet.decode().then(paint);
  });

  const chips = document.querySelectorAll(".chip");
  for (const chip of chips)
    chip.addEventListener("click", () => {
      const label = Number(chip.dataset.class);
      focus = focus === label ? null : label;
      map.classList.toggle("focused", focus !== null);
      for (const part of map.querySelectorAll("[data-class]"))
        part.classList.toggle("on", Number(part.dataset.class) === focus);
      for (const other of chips) other.setAttribute("aria-pressed", Number(other.dataset.class) === focus);
      hide();
      if (pictures) paint();
    });

  map.addEventListener("pointermove", show);
  map.addEventListener("pointerdown", show);
  map.addEventListener("pointerleave", hide);
  window.addEventListener("resize", () => pictures && paint());
})();
