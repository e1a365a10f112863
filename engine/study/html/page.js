"use strict";
// Sorts tables whose headings are buttons: numbers as numbers, missing values last in both directions.
function sortable(table) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const original = Array.from(body.rows);

  function sort(column, direction) {
    const numeric = heads[column].dataset.kind === "number";
    const keyed = original.map((row, index) => {
      const text = row.cells[column].dataset.v;
      return { row, index, value: text === undefined ? null : numeric ? Number(text) : text };
    });
    keyed.sort((a, b) => {
      if (a.value === null || b.value === null) {
        return (a.value === null) - (b.value === null) || a.index - b.index;
      }
      const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true });
      return direction * order || a.index - b.index;
    });
    body.append(...keyed.map((entry) => entry.row));
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sort(column, rising ? 1 : -1);
    });
  });
}
document.querySelectorAll("table[id]").forEach(sortable);
document.documentElement.classList.add("scripted");
