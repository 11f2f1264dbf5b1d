// Names and keyboard access that the stock theme leaves out: screen readers tell these parts apart by them.
(function () {
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
    label();
    new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
  });
})();
