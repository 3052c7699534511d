'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const byId = (id) => document.getElementById(id);

  byId('no-script').remove();

  // --- Theme ---

  const root = document.documentElement;
  const theme = byId('theme');
  const prefersDark = matchMedia('(prefers-color-scheme: dark)');
  const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : prefersDark.matches);
  const nameTheme = () => { theme.textContent = isDark() ? 'Light' : 'Dark'; };
  theme.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    nameTheme();
  });
  prefersDark.addEventListener('change', nameTheme);
  nameTheme();

  // --- Tables ---

  for (const table of document.querySelectorAll('.sortable')) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector('button').addEventListener('click', () => sort(table, heads, column));
    });
  }

  function sort(table, heads, column) {
    const head = heads[column];
    const isText = head.className === 'text';
    const first = isText ? 'ascending' : 'descending';
    const second = isText ? 'descending' : 'ascending';
    const order = head.getAttribute('aria-sort') === first ? second : first;
    heads.forEach((each) => each.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', order);
    const sign = order === 'ascending' ? 1 : -1;
    const body = table.tBodies[0];
    const valued = [...body.rows].map((row) => [key(row.cells[column], isText), row]);
    valued.sort(([a], [b]) => {
      if (isText) return sign * a.localeCompare(b, undefined, { numeric: true });
      return a === null || b === null ? (a === null) - (b === null) : sign * (a - b); // null is last
    });
    body.append(...valued.map(([, row]) => row));
  }

  function key(cell, isText) {
    if (isText) return cell.textContent;
    return cell.dataset.value === '' ? null : Number(cell.dataset.value);
  }

  for (const input of document.querySelectorAll('input[type=search]')) {
    const rows = input.closest('.of-kind').querySelectorAll('tbody tr');
    input.addEventListener('input', () => {
      const query = input.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(query);
    });
  }

  const asCounts = byId('as-counts');
  asCounts?.addEventListener('change', () => {
    for (const cell of document.querySelectorAll('.matrix [data-count]')) {
      cell.textContent = asCounts.checked ? cell.dataset.count : cell.dataset.share;
    }
  });

  // --- Charts ---

  const SVG = 'http://www.w3.org/2000/svg';
  const LEFT = 48, RIGHT = 12, TOP = 10, BOTTOM = 38;

  function element(name, attributes, parent, text) {
    const node = document.createElementNS(SVG, name);
    for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
    return values;
  }

  function short(value) {
    const size = Math.abs(value);
    if (value === 0) return '0';
    if (size < 0.001 || size >= 1e6) return value.toExponential(1).replace('.0e', 'e').replace('e+', 'e');
    return size >= 1000 ? value.toLocaleString('en') : String(Number(value.toPrecision(3)));
  }

  // A chart is {title, x, series: [[name, xs, ys], ...]}, optionally with xRange and yRange.
  class Chart {
    constructor(figure, chart) {
      this.figure = figure;
      this.hidden = new Set();
      this.plot = figure.querySelector('.plot');
      this.legend = figure.querySelector('.legend');
      this.show(chart);
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    show(chart) {
      this.chart = chart;
      this.position = null;
      const buttons = chart.series.map(([name], i) => {
        const button = document.createElement('button');
        button.type = 'button';
        button.className = `s${i}`;
        button.setAttribute('aria-pressed', String(!this.hidden.has(name)));
        button.append(document.createElement('span'));
        button.addEventListener('click', () => {
          if (!this.hidden.delete(name)) this.hidden.add(name);
          button.setAttribute('aria-pressed', String(!this.hidden.has(name)));
          this.draw();
        });
        return button;
      });
      this.reading = document.createElement('span');
      this.reading.className = 'at';
      this.reading.setAttribute('role', 'status');
      this.legend.replaceChildren(...buttons, this.reading);
      this.draw();
    }

    visible() {
      return this.chart.series
        .map((series, i) => [...series, i])
        .filter(([name]) => !this.hidden.has(name));
    }

    draw() {
      const width = this.plot.clientWidth;
      if (!width) return;
      const height = Math.round(Math.min(300, Math.max(190, width * 0.55)));
      const series = this.visible();
      const xs = series.flatMap(([, x]) => x), ys = series.flatMap(([, , y]) => y);
      const [x0, x1] = this.chart.xRange ?? [Math.min(...xs), Math.max(...xs)];
      const [y0, y1] = this.chart.yRange ?? [Math.min(0, ...ys), Math.max(...ys, 1e-9) * 1.04];
      this.toX = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
      this.toY = (y) => height - BOTTOM - ((y - y0) / (y1 - y0 || 1)) * (height - TOP - BOTTOM);

      const svg = document.createElementNS(SVG, 'svg');
      const names = series.map(([name]) => name).join(', ');
      const attributes = {
        viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: 'img',
        'aria-label': `${this.chart.title} over ${this.chart.x}: ${names}. Arrow keys read values.`,
      };
      for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
      for (const y of ticks(y0, y1, 4)) {
        element('line', { class: 'grid', x1: LEFT, x2: width - RIGHT, y1: this.toY(y), y2: this.toY(y) }, svg);
        element('text', { x: LEFT - 6, y: this.toY(y) + 4, 'text-anchor': 'end' }, svg, short(y));
      }
      for (const x of xs.length ? ticks(x0, x1, width / 70) : []) {
        if (this.chart.xRange || Number.isInteger(x)) {
          element('text', { x: this.toX(x), y: height - BOTTOM + 16, 'text-anchor': 'middle' }, svg, short(x));
        }
      }
      const middle = (LEFT + width - RIGHT) / 2;
      element('text', { x: middle, y: height - 4, 'text-anchor': 'middle' }, svg, this.chart.x);
      for (const [, x, y, i] of series) {
        const points = x.map((value, k) => `${this.toX(value).toFixed(1)},${this.toY(y[k]).toFixed(1)}`);
        element('polyline', { class: `line s${i}`, points: points.join(' ') }, svg);
        if (x.length <= 12) {
          x.forEach((value, k) => this.dot(svg, i, value, y[k]));
        }
      }
      this.cursor = element('g', { 'aria-hidden': 'true' }, svg);
      this.height = height;
      svg.addEventListener('pointermove', (event) => this.point(event.offsetX));
      svg.addEventListener('pointerleave', () => this.read(null));
      svg.addEventListener('blur', () => this.read(null));
      svg.addEventListener('keydown', (event) => this.move(event));
      const focused = this.plot.contains(document.activeElement);
      this.plot.replaceChildren(svg);
      if (focused) svg.focus();
      this.read(null);
    }

    dot(parent, i, x, y) {
      element('circle', { class: `dot s${i}`, cx: this.toX(x), cy: this.toY(y), r: 4 }, parent);
    }

    positions() {
      return [...new Set(this.visible().flatMap(([, x]) => x))].sort((a, b) => a - b);
    }

    point(offset) {
      const positions = this.positions();
      const distance = (x) => Math.abs(this.toX(x) - offset);
      if (positions.length) this.read(positions.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
    }

    move(event) {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const positions = this.positions();
      if (!step || !positions.length) return;
      event.preventDefault();
      const now = positions.indexOf(this.position);
      const next = now < 0 ? (step > 0 ? 0 : positions.length - 1) : now + step;
      this.read(positions[Math.min(positions.length - 1, Math.max(0, next))]);
    }

    read(position) {
      this.position = position;
      this.cursor.replaceChildren();
      if (position !== null) {
        const x = this.toX(position);
        element('line', { class: 'cursor', x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM }, this.cursor);
      }
      [...this.legend.querySelectorAll('button span')].forEach((span, i) => {
        const [name, x, y] = this.chart.series[i];
        const k = position === null || this.hidden.has(name) ? -1 : x.indexOf(position);
        span.textContent = k < 0 ? name : `${name} ${short(y[k])}`;
        if (k >= 0) this.dot(this.cursor, i, position, y[k]);
      });
      this.reading.textContent = position === null ? '' : `${this.chart.x} ${short(position)}`;
    }
  }

  for (const figure of document.querySelectorAll('.chart')) {
    const chart = data.charts[figure.dataset.chart];
    if (chart) new Chart(figure, chart);
  }

  // --- Boxes or masks, and precision-recall curves ---

  const select = byId('curve-class');
  const kinds = [...document.querySelectorAll('#kind input')];
  const recalls = Array.from({ length: 101 }, (_, i) => i);

  function curves() {
    const kind = kinds.find((input) => input.checked)?.value ?? data.curves[0].kind;
    return {
      title: 'Precision', x: 'recall', xRange: [0, 100], yRange: [0, 100],
      series: data.curves
        .filter((curve) => curve.kind === kind && curve.precision[select.value])
        .map((curve) => [`IoU ${curve.iou.toFixed(2)}`, recalls, curve.precision[select.value]]),
    };
  }

  if (select) {
    for (const name of Object.keys(data.curves[0].precision)) {
      select.append(new Option(name || 'mean of all classes', name));
    }
    const chart = new Chart(document.querySelector('[data-chart=curves]'), curves());
    select.addEventListener('change', () => chart.show(curves()));
    for (const input of kinds) input.addEventListener('change', () => chart.show(curves()));
  }
  for (const input of kinds) {
    input.addEventListener('change', () => {
      for (const part of document.querySelectorAll('.of-kind')) {
        part.hidden = part.dataset.kind !== input.value;
      }
    });
  }

  // --- Images ---

  const images = byId('images');
  for (const layer of ['truth', 'predicted', 'names']) {
    const box = byId(`show-${layer}`);
    box?.addEventListener('change', () => images.classList.toggle(`no-${layer}`, !box.checked));
  }

  const score = byId('score');
  score?.addEventListener('input', () => {
    score.nextElementSibling.value = Number(score.value).toFixed(2);
    for (const mark of images.querySelectorAll('[data-score]')) {
      mark.classList.toggle('below', Number(mark.dataset.score) < Number(score.value));
    }
  });

  const opacity = byId('opacity');
  opacity?.addEventListener('input', () => {
    opacity.nextElementSibling.value = `${opacity.value} %`;
    images.style.setProperty('--opacity', opacity.value / 100);
  });
})();
