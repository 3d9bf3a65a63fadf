'use strict';
// Everything works without this script, at length: no sorting, no filters, all panels open. Nothing is loaded and nothing leaves the page.
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const root = document.documentElement;

  // ---- light and dark ----
  const theme = document.getElementById('theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  const remember = (value) => { try { localStorage.setItem('tcq4-theme', value); } catch { /* a page from disk may have no storage */ } };
  const recall = () => { try { return localStorage.getItem('tcq4-theme'); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (system.matches ? 'dark' : 'light')) === 'dark';
  const showTheme = () => {
    theme.textContent = isDark() ? 'Light' : 'Dark';
    theme.setAttribute('aria-label', `Switch to ${isDark() ? 'light' : 'dark'} colours`);
    theme.setAttribute('aria-pressed', String(isDark()));
  };
  if (['dark', 'light'].includes(recall())) root.dataset.theme = recall();
  theme.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    remember(root.dataset.theme);
    showTheme();
  });
  system.addEventListener('change', showTheme);
  theme.hidden = false;
  showTheme();

  // ---- tables ----
  const key = (cell) => cell.dataset.v ?? cell.textContent;
  const compareCells = (numeric, sign) => (a, b) => {
    if (!numeric) return sign * a.key.localeCompare(b.key, 'en', { numeric: true });
    const [x, y] = [a.key, b.key].map((text) => (text === '' ? NaN : Number(text)));
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // absent values last, either way
    return sign * (x - y);
  };
  const sortBy = (table, heading) => {
    const ascending = heading.getAttribute('aria-sort') !== 'ascending';
    const body = table.tBodies[0];
    const column = heading.cellIndex;
    const rows = [...body.rows].map((row) => ({ row, key: key(row.cells[column]) }));
    rows.sort(compareCells(heading.classList.contains('n'), ascending ? 1 : -1)); // Array.prototype.sort is stable
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    heading.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    body.append(...rows.map(({ row }) => row));
  };
  const makeSortable = (table) => {
    for (const heading of table.tHead.rows[0].cells) {
      const button = make('button', { type: 'button', textContent: heading.textContent });
      heading.replaceChildren(button);
      button.addEventListener('click', () => sortBy(table, heading));
    }
  };
  const choicesOf = (table, column) => {
    const texts = new Set([...table.tBodies[0].rows].map((row) => row.cells[column].textContent));
    return [...texts].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  };
  const makeFilters = (box, table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) return;
    const search = make('input', { type: 'search', placeholder: 'any text' });
    const count = make('output');
    const tools = make('div', { className: 'tools' }, make('label', {}, 'Contains', search));
    const selects = [...table.tHead.rows[0].cells].filter((heading) => 'choice' in heading.dataset).map((heading) => {
      const select = make('select', {}, make('option', { value: '', textContent: 'all' }));
      for (const text of choicesOf(table, heading.cellIndex)) select.append(make('option', { value: text, textContent: text }));
      tools.append(make('label', {}, heading.textContent, select));
      return { column: heading.cellIndex, select };
    });
    const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join('\n').toLowerCase()]));
    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        const chosen = selects.every(({ column, select }) => !select.value || row.cells[column].textContent === select.value);
        row.hidden = !(chosen && texts.get(row).includes(wanted));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    tools.append(count);
    tools.addEventListener('input', filter);
    filter();
    box.prepend(tools);
  };
  for (const box of document.querySelectorAll('.table')) {
    const table = box.querySelector('table');
    makeFilters(box, table);
    makeSortable(table);
  }

  // ---- panels by layer and name ----
  const makePicker = (choice) => {
    const panels = [...choice.querySelectorAll(':scope > .panel')];
    if (panels.length < 2) return;
    const layerOf = (panel) => panel.dataset.layer;
    const layers = [...new Set(panels.map(layerOf))].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
    const layer = make('select', {}, ...layers.map((value) => make('option', { value, textContent: value || 'outside' })));
    const name = make('select');
    const back = make('button', { type: 'button', className: 'step', textContent: '← Previous' });
    const on = make('button', { type: 'button', className: 'step', textContent: 'Next →' });
    const inOrder = layers.flatMap((value) => panels.filter((panel) => layerOf(panel) === value));
    let current = panels[0];
    const show = (panel) => {
      if (layerOf(panel) !== layerOf(current) || !name.options.length) {
        const names = panels.filter((other) => layerOf(other) === layerOf(panel));
        name.replaceChildren(...names.map((other) => make('option', { value: other.id, textContent: other.dataset.name })));
      }
      current = panel;
      for (const other of panels) other.hidden = other !== panel;
      layer.value = layerOf(panel);
      name.value = panel.id;
      back.disabled = panel === inOrder[0];
      on.disabled = panel === inOrder.at(-1);
    };
    const sameNameIn = (value) => {
      const there = panels.filter((panel) => layerOf(panel) === value);
      return there.find((panel) => panel.dataset.name === current.dataset.name) ?? there[0];
    };
    layer.addEventListener('change', () => show(sameNameIn(layer.value)));
    name.addEventListener('change', () => show(document.getElementById(name.value)));
    back.addEventListener('click', () => show(inOrder[inOrder.indexOf(current) - 1]));
    on.addEventListener('click', () => show(inOrder[inOrder.indexOf(current) + 1]));
    const follow = () => {
      const panel = panels.find((other) => `#${other.id}` === location.hash);
      if (panel) { show(panel); panel.scrollIntoView(); }
    };
    choice.prepend(make('div', { className: 'picker' },
      make('label', {}, 'Layer', layer), make('label', {}, 'Input or tensor', name), back, on));
    show(current);
    addEventListener('hashchange', follow);
    follow();
  };
  document.querySelectorAll('.choice').forEach(makePicker);

  // ---- where the reader is ----
  const links = new Map([...document.querySelectorAll('.contents a')].map((link) => [link.getAttribute('href').slice(1), link]));
  const contents = document.querySelector('.contents details');
  if (matchMedia('(max-width: 63.99rem)').matches) contents.open = false;
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      for (const link of links.values()) link.removeAttribute('aria-current');
      links.get(entry.target.id)?.setAttribute('aria-current', 'true');
    }
  }, { rootMargin: '-10% 0px -80% 0px' });
  document.querySelectorAll('main > section').forEach((section) => watcher.observe(section));

  // ---- values under the pointer, or under the arrow keys ----
  const tip = document.getElementById('tip');
  const short = (value) => String(Number(value.toPrecision(3)));
  const value = (axis, share) => {
    const place = axis.low + share * (axis.high - axis.low);
    return axis.log ? 10 ** place : place;
  };
  const ofGrid = ({ frame: [left, top, right, bottom], grid, x, y }, [px, py]) => {
    const column = Math.floor(((px - left) / (right - left)) * grid.columns.length);
    if (column < 0 || column >= grid.columns.length || py < top || py > bottom) return null;
    const heading = `${x.label} ${grid.columns[column]}`.trim();
    if (grid.cells) {
      const row = Math.min(grid.rows.length - 1, Math.floor(((py - top) / (bottom - top)) * grid.rows.length));
      return `${heading}, ${grid.rows[row]}\n${y.label}: ${grid.values[row][column] ?? '–'}`;
    }
    return [heading, ...grid.rows.map((row, i) => `${row || y.label}: ${grid.values[i][column] ?? '–'}`)].join('\n');
  };
  const curvesOf = (svg) => [...svg.querySelectorAll('polyline:is([stroke-width="6"],[stroke-width="7"]):not([stroke="#1F2328"])')]
    .map((line) => line.getAttribute('points').trim().split(' ').map((pair) => pair.split(',').map((unit) => unit / 4)))
    .filter((points) => points.length > 1);
  const ofCurves = ({ frame: [left, top, right, bottom], x, y, series }, [px, py], svg) => {
    if (px < left - 2 || px > right + 2 || py < top - 2 || py > bottom + 2) return null;
    const dots = [...svg.querySelectorAll('path[stroke-linecap]')]
      .flatMap((path) => [...path.getAttribute('d').matchAll(/M(\d+) (\d+)/g)].map(([, across, down]) => [across / 4, down / 4]));
    const onFloor = (height) => y.log && height >= bottom - 0.25; // where curves lie that are 0, which a logarithmic axis cannot show
    const say = ([at, height]) => [
      short(value(x, (at - left) / (right - left))),
      onFloor(height) ? '0' : short(value(y, (bottom - height) / (bottom - top))),
    ];
    if (dots.length) {
      const distance = ([a, b]) => (a - px) ** 2 + (b - py) ** 2;
      const near = dots.reduce((best, dot) => (distance(dot) < distance(best) ? dot : best));
      return distance(near) < 144 ? `${x.label}: ${say(near)[0]}\n${y.label}: ${say(near)[1]}` : null;
    }
    const lines = curvesOf(svg).map((points, i) => {
      const near = points.reduce((best, point) => (Math.abs(point[0] - px) < Math.abs(best[0] - px) ? point : best));
      return `${series?.[i] || y.label}: ${say(near)[1]}`;
    });
    return lines.length ? [`${x.label}: ${say([px, top])[0]}`, ...lines].join('\n') : null;
  };
  const showTip = (text, clientX, clientY) => {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(clientX + 12, innerWidth - width - 4))}px`;
    tip.style.top = `${clientY - height - 12 > 0 ? clientY - height - 12 : clientY + 16}px`;
  };
  for (const figure of document.querySelectorAll('.plot')) {
    const hover = JSON.parse(figure.querySelector('script').textContent);
    const canvas = figure.querySelector('.canvas');
    const svg = canvas.querySelector('svg');
    const units = () => svg.viewBox.baseVal.width / 4 / svg.getBoundingClientRect().width;
    const textAt = (place) => (hover.grid ? ofGrid(hover, place) : ofCurves(hover, place, svg));
    canvas.addEventListener('pointermove', (event) => {
      const box = svg.getBoundingClientRect();
      const place = [(event.clientX - box.left) * units(), (event.clientY - box.top) * units()];
      showTip(textAt(place), event.clientX, event.clientY);
    });
    canvas.addEventListener('pointerleave', () => showTip(null));
    canvas.addEventListener('blur', () => showTip(null));
    const [left, top, right, bottom] = hover.frame;
    const columns = hover.grid ? hover.grid.columns.length : 32;
    const rows = hover.grid?.cells ? hover.grid.rows.length : 1;
    let [column, row] = [-1, 0];
    canvas.addEventListener('keydown', (event) => {
      const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
      if (event.key === 'Escape') showTip(null);
      if (across === undefined || (rows === 1 && down)) return;
      event.preventDefault();
      column = Math.max(0, Math.min(columns - 1, column + across));
      row = Math.max(0, Math.min(rows - 1, row + down));
      const place = [left + ((column + 0.5) / columns) * (right - left), top + ((row + 0.5) / rows) * (bottom - top)];
      const box = svg.getBoundingClientRect();
      showTip(textAt(place), box.left + place[0] / units(), box.top + place[1] / units());
    });
  }
})();
