'use strict';
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read('data');
  const charts = read('charts');
  const root = document.documentElement;
  const PAGE = 12; // cards added at a time

  const element = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  // Charts: drawn when they come near the screen, in the colours of the page ----------------------------------------

  const isVisible = (node) => node.offsetParent !== null;

  const themed = (layout) => {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour('--grid'), zerolinecolor: colour('--grid'), linecolor: colour('--line') };
    const themedLayout = {
      ...layout,
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      font: { color: colour('--text'), family: 'system-ui, sans-serif', size: 13 },
      hoverlabel: { bgcolor: colour('--card'), bordercolor: colour('--line'), font: { color: colour('--text') } },
    };
    delete themedLayout.template;
    for (const name of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      themedLayout[name] = { ...layout[name], ...axis };
    }
    return themedLayout;
  };

  const draw = (node) => {
    const figure = charts[node.dataset.chart];
    const config = { responsive: true, displayModeBar: false, scrollZoom: false };
    window.Plotly.react(node, figure.data, themed(structuredClone(figure.layout)), config);
    node.dataset.drawn = 'yes';
  };

  const near = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) {
      if (isIntersecting && !target.dataset.drawn) draw(target);
    }
  }, { rootMargin: '400px' });
  document.querySelectorAll('.chart').forEach((node) => near.observe(node));

  const redraw = () => {
    for (const node of document.querySelectorAll('.chart[data-drawn]')) {
      if (isVisible(node)) draw(node);
      else delete node.dataset.drawn;
    }
  };
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

  const themes = ['system', 'light', 'dark'];
  const themeButton = document.getElementById('theme');
  themeButton.addEventListener('click', () => {
    const next = themes[(themes.indexOf(root.dataset.theme || 'system') + 1) % themes.length];
    if (next === 'system') delete root.dataset.theme;
    else root.dataset.theme = next;
    themeButton.querySelector('span').textContent = next;
    redraw();
  });

  // Tables: sorted by the column whose header is clicked; a line says if they are wider than the page -----------------

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value || cell.textContent.trim();
  };

  const numberIn = (text) => {
    const found = text.match(/^[+-]?\d+(\.\d+)?/);
    return found ? Number(found[0]) : undefined;
  };

  const sortTable = (table, column) => {
    const head = table.tHead.rows[0].cells;
    const order = head[column].ariaSort === 'ascending' ? 'descending' : 'ascending';
    for (const cell of head) cell.removeAttribute('aria-sort');
    head[column].setAttribute('aria-sort', order);
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: valueOf(row, column) }));
    const known = rows.filter(({ text }) => !/^(-\s|-?$)/.test(text)); // empty cells, some with a note, stay last
    const isNumeric = known.every(({ text }) => numberIn(text) !== undefined);
    const compare = isNumeric
      ? (a, b) => numberIn(a.text) - numberIn(b.text)
      : (a, b) => a.text.localeCompare(b.text, undefined, { numeric: true });
    known.sort((a, b) => (order === 'ascending' ? compare(a, b) : compare(b, a)));
    table.tBodies[0].append(...[...known, ...rows.filter((entry) => !known.includes(entry))].map(({ row }) => row));
  };

  for (const table of document.querySelectorAll('.scroll > table')) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = element('button', { type: 'button', className: 'sort', textContent: cell.textContent });
      cell.replaceChildren(button);
      button.addEventListener('click', () => sortTable(table, column));
    });
  }

  const widths = new ResizeObserver((changed) => {
    for (const { target } of changed) target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
  });
  for (const node of document.querySelectorAll('.scroll')) {
    node.before(element('p', { className: 'note sideways', textContent: 'Scroll the table sideways for more columns.', hidden: true }));
    widths.observe(node);
  }

  // Classes: the tables and charts of one output ------------------------------------------------------------------

  const entrySelect = document.getElementById('entry');
  const showEntry = () => {
    for (const node of document.querySelectorAll('.of-entry')) node.hidden = node.dataset.entry !== entrySelect.value;
  };
  if (entrySelect) {
    entrySelect.addEventListener('change', showEntry);
    showEntry();
  }

  // Gallery -------------------------------------------------------------------------------------------------------

  const filters = document.getElementById('filters');
  const field = (name) => (filters.elements[name] ? filters.elements[name].value : '');
  const cardsNode = document.getElementById('cards');
  const more = document.getElementById('more');
  let found = [];
  let shown = 0;

  const chip = ({ name, colour, ink }, more = '') => {
    const style = `background:${colour};color:${ink}`;
    return element('span', { className: 'chip', style, textContent: name + more });
  };

  // The IoU that cards are sorted by: of the chosen class if there is one, else the mean over classes.
  // Without a chosen output it is that of the last stage that was scored on the image.
  const scoreOf = (card) => {
    const scores = card.scores[field('entry') || Object.keys(card.scores).map(Number).sort((a, b) => b - a)[0]];
    return scores ? scores[field('class') || 'all'] : undefined;
  };

  const picture = (card, panel) => {
    const node = element('span', { className: 'picture', style: `aspect-ratio:${card.width}/${card.height}` });
    node.append(element('img', { src: card.image, alt: '', decoding: 'async' }));
    if (panel.layer) {
      const className = panel.smooth ? '' : 'exact';
      node.append(element('img', { src: panel.layer, alt: '', className, decoding: 'async' }));
    }
    return node;
  };

  const caption = (panel) => {
    const node = element('figcaption', {}, element('span', { textContent: `${panel.title} ` }));
    node.append(...panel.classes.map((index) => chip(data.classes[index])));
    node.append(...panel.errors.map((share, i) => chip(data.errors[i], ` ${share.toFixed(1)} %`)));
    if (panel.note) node.append(element('span', { className: 'note', textContent: panel.note }));
    return node;
  };

  const visiblePanels = (card) => {
    const boxes = [...filters.querySelectorAll('[name=source]')];
    const on = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    return card.panels.filter((panel) => panel.source === null || on.has(data.gallery.sources[panel.source]));
  };

  const makeCard = (card) => {
    const score = scoreOf(card);
    const head = element('h3', {}, element('span', { textContent: `${card.id} ` }));
    const where = [card.domain];
    if (score !== undefined) {
      const what = field('class') ? data.classes[field('class')].name : 'mean';
      where.push(`${what} IoU ${score.toFixed(1)} %`);
    }
    head.append(element('span', { className: 'note', textContent: where.join(', ') }));
    const panels = element('div', { className: 'panels' });
    for (const panel of visiblePanels(card)) {
      const button = element('button', { type: 'button' }, picture(card, panel));
      const words = [panel.title, ...panel.classes.map((index) => data.classes[index].name), panel.note].filter(Boolean);
      button.setAttribute('aria-label', `Enlarge ${card.id}: ${words.join(', ')}`);
      button.addEventListener('click', () => view(card, panel));
      panels.append(element('figure', {}, button, caption(panel)));
    }
    return element('article', { className: 'card' }, head, panels);
  };

  const showMore = () => {
    cardsNode.append(...found.slice(shown, shown + PAGE).map(makeCard));
    shown = Math.min(shown + PAGE, found.length);
    more.hidden = shown === found.length;
    const count = document.getElementById('count');
    count.textContent = found.length ? `${found.length} images, ${shown} shown` : 'No image matches.';
  };

  const update = () => {
    const text = field('id').trim().toLowerCase();
    const index = Number(field('class'));
    const domain = field('domain');
    found = data.gallery.cards.filter((card) => {
      const matches = !index || card.classes.includes(index) || scoreOf(card) !== undefined;
      return card.id.toLowerCase().includes(text) && matches && (!domain || card.domain === domain);
    });
    const sort = field('sort');
    const byId = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
    if (sort === 'id' || sort === '') found.sort(byId);
    else {
      // Of a class: its images. Those where it is only predicted, all at 0 %, come after them.
      const isSorted = (card) => scoreOf(card) !== undefined && (!index || card.classes.includes(index));
      const values = found.filter(isSorted).map(scoreOf).sort((a, b) => a - b);
      const median = values[Math.floor(values.length / 2)];
      const keys = { worst: (s) => s, best: (s) => -s, median: (s) => Math.abs(s - median) };
      const key = (card) => (isSorted(card) ? keys[sort](scoreOf(card)) : Infinity);
      found = found.map((card) => [key(card), card]).sort((a, b) => (a[0] === b[0] ? byId(a[1], b[1]) : a[0] - b[0])).map((pair) => pair[1]);
    }
    shown = 0;
    cardsNode.replaceChildren();
    showMore();
  };

  filters.addEventListener('input', (event) => {
    if (event.target.name === 'overlay') root.style.setProperty('--overlay', event.target.value / 100);
    else update();
  });
  filters.addEventListener('submit', (event) => event.preventDefault());
  more.addEventListener('click', showMore);

  for (const button of document.querySelectorAll('.worst')) {
    button.addEventListener('click', () => {
      filters.reset();
      filters.elements.class.value = button.dataset.class;
      filters.elements.entry.value = button.dataset.entry;
      filters.elements.sort.value = 'worst';
      update();
      document.getElementById('gallery').scrollIntoView();
      filters.elements.class.focus({ preventScroll: true });
    });
  }

  // A picture by itself: arrow keys go through the pictures of its image ------------------------------------------

  const viewer = document.getElementById('viewer');
  let current;

  const view = (card, panel) => {
    current = { card, panel };
    const scale = Math.min(860 / card.width, (0.7 * window.innerHeight) / card.height);
    const large = picture(card, panel);
    large.style.maxWidth = `${Math.round(card.width * scale)}px`;
    viewer.querySelector('.picture').replaceWith(large);
    viewer.querySelector('figcaption').replaceWith(caption(panel));
    viewer.querySelector('figcaption').prepend(`${card.id}: `);
    if (!viewer.open) viewer.showModal();
  };

  const step = (by) => {
    const panels = visiblePanels(current.card);
    view(current.card, panels[(panels.indexOf(current.panel) + by + panels.length) % panels.length]);
  };
  viewer.addEventListener('click', (event) => {
    if (event.target.dataset.step) step(Number(event.target.dataset.step));
    if ('close' in event.target.dataset || event.target === viewer) viewer.close();
  });
  viewer.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(by);
  });

  update();
})();
