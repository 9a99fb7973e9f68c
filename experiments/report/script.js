"use strict";
(() => {
  const root = document.documentElement;
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  root.classList.add("scripted");

  // Light and dark: the system's choice until the reader makes one.
  const theme = document.querySelector(".theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const kept = {
    get() { try { return localStorage.getItem("pacesetter-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("pacesetter-theme", value); } catch { /* private */ } },
  };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  if (["light", "dark"].includes(kept.get())) root.dataset.theme = kept.get();
  system.addEventListener("change", name);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept.set(root.dataset.theme);
    name();
  });
  name();

  // Sorting: numbers by value, what has none last; the order before decides between equals.
  const collator = new Intl.Collator("en", { numeric: true });
  const value = (row, column) => row.children[column].dataset.value;
  const sort = (head) => {
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    const rows = [...table.tBodies[0].rows];
    const numeric = head.dataset.kind === "number";
    rows.sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numeric ? Number(a) - Number(b) : collator.compare(a, b);
      return up ? order : -order;
    });
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  };
  for (const button of all("th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // One line per arm, or every budget and start.
  for (const box of all(".more input")) {
    const part = document.getElementById(box.getAttribute("aria-controls"));
    const apply = () => part.classList.toggle("few", !box.checked);
    box.addEventListener("change", apply);
    apply();
  }

  // One task at a time: the address says which.
  const overview = document.getElementById("overview");
  const tasks = all("section.task");
  const choose = document.querySelector(".bar select");
  const title = document.title;
  const turn = () => {
    let wanted = location.hash.slice(1);
    try { wanted = decodeURIComponent(wanted); } catch { /* as it is */ }
    const shown = tasks.find((task) => task.id === wanted);
    overview.classList.toggle("away", Boolean(shown));
    for (const task of tasks) task.classList.toggle("away", task !== shown);
    for (const link of all(".bar a")) {
      const here = link.hash === (shown ? "#tasks" : "#overview");
      if (here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    if (choose) choose.value = shown ? shown.id : "";
    document.title = shown ? `${shown.dataset.name} \u2013 ${title}` : title;
    const part = shown ? null : document.getElementById(wanted);
    if (part && part !== overview) part.scrollIntoView();
    else window.scrollTo(0, 0);
  };
  if (choose) {
    choose.addEventListener("change", () => { location.hash = choose.value || "overview"; });
  }
  window.addEventListener("hashchange", turn);
  turn();
})();
