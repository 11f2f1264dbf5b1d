// On a phone, a table that does not fit becomes a list of rows, and every cell repeats the heading of its column.
// This uses attributes instead of classes, because the theme styles only tables without a class.
(function () {
  const phone = matchMedia("(max-width: 44.9375em)");
  const SHORT = 28; // a cell of at most so many characters does not wrap: a measurement, a name, a type

  function fits(table) {
    const place = table.closest(".md-typeset__scrollwrap") ?? table.parentElement;
    table.dataset.measured = "";
    const wide = place.scrollWidth > place.clientWidth;
    delete table.dataset.measured;
    return !wide;
  }

  function stack(table) {
    const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    table.dataset.stacked = "";
    table.setAttribute("role", "table"); // display: block removes the roles
    for (const row of table.tBodies[0].rows) {
      row.setAttribute("role", "row");
      [...row.cells].forEach((cell, i) => {
        cell.setAttribute("role", "cell");
        cell.dataset.label = headings[i];
        if (cell.firstElementChild?.className === "cell") return;
        const inner = document.createElement("span");
        inner.className = "cell";
        inner.append(...cell.childNodes);
        cell.append(inner);
      });
    }
  }

  function arrange() {
    document.querySelectorAll(".md-typeset table:not(.bars-table, .highlighttable)").forEach((table) => {
      if (!table.tHead) return;
      delete table.dataset.stacked;
      if (!phone.matches) return;
      for (const cell of table.tBodies[0].querySelectorAll("td")) {
        cell.toggleAttribute("data-short", cell.textContent.trim().length <= SHORT);
      }
      if (!fits(table)) stack(table);
    });
  }

  document$.subscribe(() => {
    requestAnimationFrame(arrange); // after the theme has put the tables into their places
    phone.addEventListener("change", arrange);
    document.addEventListener("toggle", arrange, true); // a folded table has no width
  });
})();
