// What scrolls sideways can be reached with the keyboard: the theme sees to code and outputs, this to formulas and tables.
addEventListener("load", async () => {
  await window.MathJax?.startup.promise;
  const mark = () => {
    for (const box of document.querySelectorAll('mjx-container[display="true"], .pst-scrollable-table-container'))
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
  };
  mark();
  addEventListener("resize", mark);
});
