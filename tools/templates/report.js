// Pointing, following, filters and keys. Everything that it shows stands in the page already.
"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  document.body.classList.add("live");

  // The map
  const map = one("map-rows"), ties = one("map-ties"), text = one("map-text"), links = one("map-links");
  const hint = text.textContent;
  const cells = all(".seg", map);
  const siteOf = (cell) => cell.closest(".site");
  const numberOf = (site) => site.id.slice("site-".length);
  const shortOf = (number) => one(`site-${number}`).dataset.short;
  const visible = (cell) => cell.offsetParent !== null;
  const onSite = (number, axis) => all(`.seg[data-axis="${axis}"]`, one(`site-${number}`));
  let kept = null; // the segment that was clicked: it stays until another one is, or Escape
  let turn = 0; // which reader Enter goes to next

  // The segments that hold the same weights: of a reader, what its base stores for it; of a base, what its readers take from it.
  function partners(cell) {
    const own = numberOf(siteOf(cell)), axis = cell.dataset.axis;
    if (cell.dataset.base !== undefined) {
      return onSite(cell.dataset.base, axis).filter((other) => (other.dataset.readers ?? "").split(" ").includes(own));
    }
    return (cell.dataset.readers ?? "").split(" ").filter(Boolean)
      .flatMap((reader) => onSite(reader, axis).filter((other) => other.dataset.base === own));
  }

  function show(cell) {
    all(".chosen, .tied, .lit", map).forEach((other) => other.classList.remove("chosen", "tied", "lit"));
    ties.replaceChildren();
    links.replaceChildren();
    map.classList.toggle("following", Boolean(cell));
    if (!cell) {
      text.textContent = hint;
      return;
    }
    const found = partners(cell);
    cell.classList.add("chosen");
    siteOf(cell).classList.add("lit");
    for (const other of found) {
      other.classList.add("tied");
      siteOf(other).classList.add("lit");
    }
    const name = document.createElement("b");
    name.textContent = siteOf(cell).dataset.name;
    text.replaceChildren(name, document.createElement("br"), cell.getAttribute("aria-label"));
    for (const number of new Set(found.map((other) => numberOf(siteOf(other))))) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${cell.dataset.base === undefined ? "reader" : "base"}: ${shortOf(number)}`;
      button.addEventListener("click", () => go(onSite(number, cell.dataset.axis).find((other) => found.includes(other))));
      links.append(button);
    }
    draw(cell, found.filter(visible));
  }

  function draw(cell, others) {
    const frame = map.getBoundingClientRect();
    const middle = (element) => {
      const box = element.getBoundingClientRect();
      return [box.left - frame.left + box.width / 2, box.top - frame.top + box.height / 2];
    };
    const add = (kind, values) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
      Object.entries(values).forEach(([key, value]) => made.setAttribute(key, value));
      ties.append(made);
    };
    const [x, y] = middle(cell);
    for (const other of others) {
      const [u, v] = middle(other);
      // Within a column the tie bows to the side, across columns it runs between them.
      const bow = Math.abs(u - x) < 60 ? Math.min(60, 18 + Math.abs(v - y) / 6) : 0;
      const reach = bow ? -bow : (u - x) / 2;
      add("path", { d: `M${x} ${y}C${x + reach} ${y} ${bow ? u - bow : u - reach} ${v} ${u} ${v}` });
      add("circle", { cx: u, cy: v, r: 3 });
    }
    if (others.length) add("circle", { cx: x, cy: y, r: 3 });
  }

  function keep(cell) {
    kept = cell;
    turn = 0;
    show(cell);
  }

  // To another segment, as if it had been clicked; filters that hide it are taken back.
  function go(cell) {
    if (!cell) return;
    if (!visible(cell)) {
      all(".tools input[value='']").forEach((input) => { input.checked = true; });
      filter();
    }
    focus(cell);
    keep(cell);
  }

  function follow(cell) {
    const found = partners(cell);
    if (!found.length) return;
    if (cell.dataset.base !== undefined) {
      go(found[0]);
    } else {
      const next = found[turn % found.length], after = turn + 1;
      go(next);
      back = { cell, turn: after };
    }
  }
  let back = null; // the base that Enter came from, so that Enter goes on to its next reader

  function focus(cell) {
    cells.forEach((other) => { if (other.tabIndex === 0) other.tabIndex = -1; });
    cell.tabIndex = 0;
    cell.focus();
  }

  // The cell of a row that is nearest to a place from left to right.
  function nearest(site, x, lane) {
    const lanes = all(".lane", site);
    const inside = all(".seg", lanes[Math.min(lane, lanes.length - 1)]);
    const far = (cell) => {
      const box = cell.getBoundingClientRect();
      return Math.max(box.left - x, x - box.right, 0);
    };
    return inside.reduce((best, cell) => (far(cell) < far(best) ? cell : best), inside[0]);
  }

  const rows = () => all(".site", map).filter((site) => site.offsetParent !== null);

  map.addEventListener("keydown", (event) => {
    const cell = event.target.closest(".seg");
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const site = siteOf(cell), lanes = all(".lane", site), lane = lanes.indexOf(cell.parentElement);
    const inside = all(".seg", cell.parentElement), place = inside.indexOf(cell);
    const box = cell.getBoundingClientRect(), x = box.left + box.width / 2;
    const order = rows(), row = order.indexOf(site);
    const upright = (step) => {
      if (lanes[lane + step]) return nearest(site, x, lane + step);
      const next = order[row + step];
      return next && next.closest(".column") === site.closest(".column") ? nearest(next, x, step > 0 ? 0 : 9) : null;
    };
    const aside = (step) => {
      if (inside[place + step]) return inside[place + step];
      const columns = all(".column", map).filter((column) => column.offsetParent !== null);
      const column = columns[columns.indexOf(site.closest(".column")) + step];
      if (!column) return null;
      const top = site.getBoundingClientRect().top;
      const near = all(".site", column).filter((other) => other.offsetParent !== null)
        .reduce((best, other) => (!best || Math.abs(other.getBoundingClientRect().top - top)
          < Math.abs(best.getBoundingClientRect().top - top) ? other : best), null);
      return near && nearest(near, step > 0 ? -1e6 : 1e6, lane);
    };
    const to = {
      ArrowLeft: () => aside(-1),
      ArrowRight: () => aside(1),
      ArrowUp: () => upright(-1),
      ArrowDown: () => upright(1),
      Home: () => inside[0],
      End: () => inside[inside.length - 1],
    }[event.key];
    if (to) {
      event.preventDefault();
      const next = to();
      if (next) {
        focus(next);
        keep(null);
        show(next);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      // Enter on a reader that Enter led to from a base: on to the base's next reader would skip the way back, so the base comes first.
      if (back && back.cell !== cell && cell.dataset.base !== undefined && partners(cell).includes(back.cell)) {
        const { cell: base, turn: next } = back;
        go(base);
        turn = next;
        back = null;
      } else {
        follow(cell);
      }
    } else if (event.key === "Escape") {
      keep(null);
    }
  });

  map.addEventListener("pointerover", (event) => {
    const cell = event.target.closest(".seg");
    if (cell && !kept) show(cell);
  });
  map.addEventListener("pointerleave", () => { if (!kept) show(null); });
  map.addEventListener("click", (event) => {
    const cell = event.target.closest(".seg");
    if (!cell) {
      keep(null);
      return;
    }
    if (kept === cell) {
      follow(cell);
      return;
    }
    focus(cell);
    keep(cell);
  });
  map.addEventListener("focusin", (event) => {
    const cell = event.target.closest(".seg");
    if (cell && cell.matches(":focus-visible") && !kept) show(cell);
  });
  window.addEventListener("resize", () => { const cell = map.querySelector(".chosen"); if (cell) show(cell); });

  function filter() {
    const wanted = Object.fromEntries(["kind", "modality", "shares"].map(
      (name) => [name, document.querySelector(`.tools input[name="${name}"]:checked`)?.value ?? ""]));
    const sites = all(".site", map);
    for (const site of sites) {
      site.hidden = Object.entries(wanted).some(([name, value]) => value && (site.dataset[name] ?? "") !== value);
    }
    for (const box of all(".tower, .column", map)) box.hidden = !box.querySelector(".site:not([hidden])");
    const shown = sites.filter((site) => !site.hidden).length;
    one("map-shown").textContent = shown === sites.length ? `all ${shown} sites` : `${shown} of ${sites.length} sites`;
    keep(null);
    const current = cells.find((cell) => cell.tabIndex === 0);
    if (!current || !visible(current)) {
      const first = cells.find(visible);
      if (current) current.tabIndex = -1;
      if (first) first.tabIndex = 0;
    }
  }
  one("map-tools").hidden = false;
  one("map-detail").hidden = false;
  one("map-tools").addEventListener("change", filter);
  filter();

  // Examples
  const examples = one("examples");
  examples.addEventListener("change", (event) => {
    if (event.target.matches(".show-boxes")) {
      all(`.show-boxes[value="${event.target.value}"]`, examples).forEach((input) => { input.checked = event.target.checked; });
      examples.classList.toggle(`without-${event.target.value}`, !event.target.checked);
    }
    if (event.target.matches(".only-changed")) {
      all(".only-changed", examples).forEach((input) => { input.checked = event.target.checked; });
      all(".example", examples).forEach((item) => { item.hidden = event.target.checked && !item.classList.contains("changed"); });
    }
  });

  // Provenance
  const copy = one("copy");
  if (navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(one("commands").textContent);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }

  // The section that is being read
  const marks = new Map(all(".top li a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      marks.forEach((link) => link.removeAttribute("aria-current"));
      marks.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  all("main > section").forEach((section) => seen.observe(section));

  // On paper everything is open.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((box) => { box.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((box) => { box.open = false; }));
})();
