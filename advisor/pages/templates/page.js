"use strict";
// Charts: colours are names of the page's own (--ink), looked up whenever the page turns light or dark.
(() => {
  const drawn = new WeakMap();
  const coloured = (value, style) => {
    if (typeof value === "string" && /^--[a-z0-9-]+$/.test(value)) return style.getPropertyValue(value).trim();
    if (Array.isArray(value)) return value.map((each) => coloured(each, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, style)]));
    }
    return value;
  };
  const draw = (anew) => {
    const style = getComputedStyle(document.documentElement);
    for (const place of document.querySelectorAll(".plot")) {
      const text = document.getElementById(place.dataset.figure).textContent;
      if (!anew && drawn.get(place) === text) continue;
      drawn.set(place, text);
      const figure = coloured(JSON.parse(text), style);
      Plotly.react(place, figure.data, figure.layout, { displayModeBar: false, responsive: true, scrollZoom: false });
    }
  };
  if (typeof Plotly !== "undefined") {
    draw(true);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
    document.addEventListener("advisor:changed", () => draw(false));
  }
})();
// Code to copy: through the clipboard where the browser lets us, else by selecting it.
(() => {
  const byHand = (pre) => {
    const range = document.createRange();
    range.selectNodeContents(pre);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  };
  const show = () => {
    for (const button of document.querySelectorAll("button[data-copies]")) button.hidden = false;
  };
  show();
  document.addEventListener("advisor:changed", show);
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copies]");
    if (!button) return;
    const said = document.getElementById(button.getAttribute("aria-describedby"));
    const pre = document.getElementById(button.dataset.copies);
    let done = true;
    try {
      await navigator.clipboard.writeText(pre.textContent);
    } catch {
      done = byHand(pre);
    }
    said.textContent = "";
    setTimeout(() => { said.textContent = done ? "copied" : "selected: press Ctrl+C or ⌘C"; }, 30);
  });
})();
