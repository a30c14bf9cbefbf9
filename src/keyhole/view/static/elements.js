// Small helpers to make elements and say numbers. Text is always set as text, never as HTML.

export function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

export function percent(share) {
  const value = 100 * share;
  return `${value.toFixed(value >= 99.95 || value === 0 ? 0 : value < 0.1 ? 3 : 1)}%`;
}

export function counted(number) { return Math.round(number).toLocaleString("en"); }

export function bytesSaid(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit++; }
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
}

// White space that would not be seen otherwise.
export function shownToken(text) {
  return text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5") || "\u2205";
}

export function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A canvas's context, sized for the screen's pixels; sizes are in CSS pixels.
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
