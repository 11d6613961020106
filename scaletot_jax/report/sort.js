"use strict";
// Tables of class "sortable": the header cells become buttons that order the rows. Without this script the tables read as they are.
(() => {
  const number = (cell) => {
    const found = /[+\u2212-]?[\d,]*\.?\d+(?:e[+\u2212-]?\d+)?/.exec(cell.textContent);
    return found ? Number(found[0].replace(/\u2212/g, "-").replace(/,/g, "")) : NaN;
  };
  const compare = (a, b, numeric, down) => {
    if (!numeric) return a.textContent.localeCompare(b.textContent) * (down ? -1 : 1);
    const x = number(a), y = number(b);
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // missing ones last, either way
    return (x - y) * (down ? -1 : 1);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const numeric = head.classList.contains("n");
        const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], numeric, down));
        body.append(...rows);
      });
    });
  }
})();
