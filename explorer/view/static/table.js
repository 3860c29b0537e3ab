// An accessible table of attention blocks: one row is the tab stop, arrows move, Enter, Space or a click selects.
// Everything shown comes from a model and is untrusted: it only ever becomes textContent.

function cell(tag, text, role) {
  const element = document.createElement(tag);
  element.setAttribute("role", role);
  element.textContent = text;
  return element;
}

function render({ model, el }) {
  const table = document.createElement("table");
  table.className = "explorer-blocks";
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "Attention blocks");
  el.replaceChildren(table);

  const select = (row) => {
    model.set("selected", row.dataset.id);
    model.save_changes();
  };

  const mark = (focus) => {
    const rows = [...table.querySelectorAll("tbody tr")];
    const selected = model.get("selected");
    const stop = rows.find((row) => row.dataset.id === selected) ?? rows[0];
    for (const row of rows) {
      row.setAttribute("aria-selected", String(row.dataset.id === selected));
      row.tabIndex = row === stop ? 0 : -1;
    }
    if (stop && selected) {
      const box = el.getBoundingClientRect();
      const place = stop.getBoundingClientRect();
      if (place.top < box.top || place.bottom > box.bottom) stop.scrollIntoView({ block: "nearest" });
      if (focus) stop.focus();
    }
  };

  const draw = () => {
    const focused = table.contains(document.activeElement);
    const head = document.createElement("thead");
    const titles = document.createElement("tr");
    titles.setAttribute("role", "row");
    titles.append(...model.get("columns").map((title) => cell("th", title, "columnheader")));
    head.append(titles);
    const body = document.createElement("tbody");
    for (const { id, status, cells } of model.get("rows")) {
      const row = document.createElement("tr");
      row.setAttribute("role", "row");
      row.dataset.id = id;
      row.dataset.status = status;
      row.append(...cells.map((text) => cell("td", text, "gridcell")));
      body.append(row);
    }
    table.replaceChildren(head, body);
    mark(focused);
  };

  table.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) {
      select(row);
      row.focus();
    }
  });
  table.addEventListener("keydown", (event) => {
    const rows = [...table.querySelectorAll("tbody tr")];
    const at = rows.indexOf(document.activeElement);
    const last = rows.length - 1;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last, Enter: at, " ": at }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const row = rows[Math.min(Math.max(to, 0), last)];
    select(row);
    row.focus();
  });

  const follow = () => mark(false);
  model.on("change:rows", draw);
  model.on("change:selected", follow);
  draw();
  return () => {
    model.off("change:rows", draw);
    model.off("change:selected", follow);
  };
}

export default { render };
