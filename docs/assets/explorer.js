// The pattern explorer: shows layouts that the library computed when the site was built; computes none itself.
(function () {
  function bits(text, n) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return (row, col) => {
      const at = row * n + col;
      return (bytes[at >> 3] >> (7 - (at & 7))) & 1;
    };
  }

  function draw(canvas, entry) {
    const n = entry.n;
    const active = bits(entry.bits, n);
    const style = getComputedStyle(document.body);
    const on = style.getPropertyValue("--md-accent-fg-color") || "#4051b5";
    const off = style.getPropertyValue("--md-default-fg-color--lightest") || "#ddd";
    const scale = Math.max(1, Math.floor(512 / n));
    canvas.width = canvas.height = n * scale;
    const context = canvas.getContext("2d");
    context.fillStyle = off;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = on;
    for (let row = 0; row < n; row++) {
      for (let col = 0; col < n; col++) {
        if (active(row, col)) context.fillRect(col * scale, row * scale, scale, scale);
      }
    }
    canvas.setAttribute("aria-label", `${entry.blocks} active blocks of a grid of ${n} by ${n}`);
  }

  function percent(share) {
    return (100 * share).toFixed(share < 0.1 ? 2 : 1) + " %";
  }

  async function start() {
    const root = document.querySelector("#explorer");
    if (!root || root.dataset.ready) return;
    root.dataset.ready = "1";
    const form = root.querySelector("form");
    const layouts = await (await fetch(root.dataset.layouts)).json();
    function show() {
      const value = (name) => form.elements[name].value;
      const causal = form.elements.causal.checked ? "1" : "0";
      const entry = layouts[[value("pattern"), value("ratio"), value("block"), value("tokens"), causal].join("|")];
      draw(root.querySelector("canvas"), entry);
      root.querySelector("output").textContent =
        `${entry.blocks.toLocaleString("en")} active blocks, ${percent(entry.density)} of those that dense attention ` +
        `computes; asked for ${percent(entry.asked)}, ${entry.floor} of ${entry.n} rows at the floor. ` +
        `A layer reaches ${entry.reach.toLocaleString("en")} tokens. ` +
        `Connected pairs after 1, 2, 3 layers: ${entry.coverage.map(percent).join(", ")}. ` +
        `Layers to full coverage: ${entry.hops ?? "never, however many"}.`;
    }
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    new MutationObserver(show).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
    show();
  }

  document$.subscribe(start);
})();
