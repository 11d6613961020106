"use strict";
// What is folded away is printed, too: paper has nothing to click. Afterwards the page is as it was.
(() => {
  let opened = [];
  addEventListener("beforeprint", () => {
    const folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
    opened = [...opened, ...folded];
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
    opened = [];
  });
})();
