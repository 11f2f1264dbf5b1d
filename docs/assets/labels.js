// Accessible names and keyboard access that the stock theme leaves out, and places where long names may wrap.
(function () {
  function wrapNames() {
    for (const place of document.querySelectorAll(".md-nav__link, .md-typeset :is(h1, h2, h3, h4)")) {
      const texts = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
      const long = [];
      while (texts.nextNode()) if (/\w[_(]\w|[a-z][A-Z]/.test(texts.currentNode.data)) long.push(texts.currentNode);
      for (const text of long) {
        const parts = text.data.split(/(?<=[_(])|(?<=[a-z])(?=[A-Z])/);
        text.replaceWith(...parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
      }
    }
  }

  function label() {
    document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
    document.querySelectorAll("nav.md-code__nav").forEach((nav, i) => {
      const name = `Code block ${i + 1}`;
      if (nav.getAttribute("aria-label") !== name) nav.setAttribute("aria-label", name);
    });
    document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code, .tabbed-labels").forEach((region) => {
      if (region.scrollWidth > region.clientWidth && !region.hasAttribute("tabindex")) region.tabIndex = 0;
    });
  }
  document$.subscribe(() => {
    wrapNames();
    label();
    new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
  });
})();
