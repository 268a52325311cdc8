/** Small plots as SVG: bars on a logarithmic scale, and lines in panels. Nothing here measures or reads files. */

export const seriesColours = ['#1f6fb4', '#e08a1e', '#6a6a6a', '#3f9b57', '#a04a9c'];
const INK = '#222';
const GRID = '#ddd';
const CHARACTER_WIDTH = 6.6;

export function escapeXml(text: string): string {
  return text.replace(
    /[&<>"]/g,
    (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c] as string,
  );
}

interface TextAt {
  readonly x: number;
  readonly y: number;
  readonly anchor?: 'start' | 'middle' | 'end';
  readonly bold?: boolean;
  readonly size?: number;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function text(content: string, { x, y, anchor = 'start', bold = false, size = 12 }: TextAt): string {
  const weight = bold ? ' font-weight="bold"' : '';
  return `<text x="${round(x)}" y="${round(y)}" font-size="${size}" text-anchor="${anchor}"${weight}>${escapeXml(content)}</text>`;
}

function line(from: readonly [number, number], to: readonly [number, number], style: string): string {
  return `<line x1="${round(from[0])}" y1="${round(from[1])}" x2="${round(to[0])}" y2="${round(to[1])}" ${style}/>`;
}

function rectangle(box: { x: number; y: number; width: number; height: number }, fill: string): string {
  return `<rect x="${round(box.x)}" y="${round(box.y)}" width="${round(box.width)}" height="${round(box.height)}" fill="${fill}"/>`;
}

function page(size: { width: number; height: number; title: string }, parts: readonly string[]): string {
  const { width, height } = { width: Math.ceil(size.width), height: Math.ceil(size.height) };
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="DejaVu Sans, Verdana, sans-serif" fill="${INK}">`,
    `<title>${escapeXml(size.title)}</title>`,
    // A page of its own colour: the viewer's may be dark.
    rectangle({ x: 0, y: 0, width, height }, '#fff'),
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

function legend(names: readonly string[], at: { x: number; y: number }): string[] {
  let x = at.x;
  return names.flatMap((name, n) => {
    const left = x;
    x += name.length * CHARACTER_WIDTH + 40;
    return [
      rectangle({ x: left, y: at.y - 9, width: 10, height: 10 }, seriesColours[n % seriesColours.length]),
      text(name, { x: left + 15, y: at.y, size: 11 }),
    ];
  });
}

/** The powers of two around some values: the ends and the marks of a logarithmic axis. */
export function powersOfTwoAround(values: readonly number[]): number[] {
  const usable = values.filter((value) => Number.isFinite(value) && value > 0);
  if (usable.length === 0) return [1, 2];
  const first = Math.floor(Math.log2(Math.min(...usable)));
  const last = Math.max(Math.ceil(Math.log2(Math.max(...usable))), first + 1);
  return Array.from({ length: last - first + 1 }, (_, n) => 2 ** (first + n));
}

function tick(value: number): string {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (value >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return String(Number(value.toPrecision(3)));
}

export interface Bar {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

export interface BarRow {
  readonly label: string;
  /** One for each series; undefined where there is none. */
  readonly bars: readonly (Bar | undefined)[];
}

export interface BarChart {
  readonly title: string;
  readonly subtitle: string;
  readonly series: readonly string[];
  readonly groups: readonly { readonly title: string; readonly rows: readonly BarRow[] }[];
}

/** Horizontal bars that start at 1, to the right for more and to the left for less, with their spread. */
export function barChart({ title, subtitle, series, groups }: BarChart): string {
  const bars = groups
    .flatMap(({ rows }) => rows.flatMap((row) => row.bars))
    .filter((bar) => bar !== undefined);
  const marks = powersOfTwoAround([0.5, 2, ...bars.flatMap(({ low, high }) => [low, high])]);
  const labels = groups.flatMap(({ rows }) => rows.map(({ label }) => label.length));
  const left = Math.max(120, ...labels.map((length) => length * CHARACTER_WIDTH)) + 20;
  const plotWidth = 520;
  const barHeight = 9;
  const rowHeight = series.length * (barHeight + 1) + 7;
  const [low, high] = [Math.log2(marks[0]), Math.log2(marks[marks.length - 1])];
  const x = (value: number): number => left + ((Math.log2(value) - low) / (high - low)) * plotWidth;

  const parts = [
    text(title, { x: 12, y: 22, bold: true, size: 14 }),
    text(subtitle, { x: 12, y: 40, size: 11 }),
    ...legend(series, { x: left, y: 60 }),
  ];
  let y = 84;
  const top = y - 6;
  const body: string[] = [];
  for (const group of groups) {
    body.push(text(group.title, { x: 12, y: y + 8, bold: true }));
    y += 18;
    for (const row of group.rows) {
      body.push(text(row.label, { x: left - 8, y: y + rowHeight / 2, anchor: 'end', size: 11 }));
      row.bars.forEach((bar, n) => {
        if (bar !== undefined) body.push(...drawBar(bar, { n, x, y: y + n * (barHeight + 1), barHeight }));
      });
      y += rowHeight;
    }
    y += 10;
  }
  const grid = marks.flatMap((mark) => [
    line([x(mark), top], [x(mark), y], `stroke="${mark === 1 ? INK : GRID}"`),
    text(tick(mark), { x: x(mark), y: y + 14, anchor: 'middle', size: 11 }),
  ]);
  return page({ title, width: left + plotWidth + 60, height: y + 26 }, [...parts, ...grid, ...body]);
}

interface BarPlace {
  readonly n: number;
  readonly x: (value: number) => number;
  readonly y: number;
  readonly barHeight: number;
}

function drawBar(bar: Bar, { n, x, y, barHeight }: BarPlace): string[] {
  const [from, to] = [Math.min(x(1), x(bar.value)), Math.max(x(1), x(bar.value))];
  const middle = y + barHeight / 2;
  return [
    rectangle(
      { x: from, y, width: Math.max(to - from, 1), height: barHeight },
      seriesColours[n % seriesColours.length],
    ),
    line([x(bar.low), middle], [x(bar.high), middle], `stroke="${INK}"`),
    text(bar.value.toFixed(2), { x: Math.max(x(bar.high), x(1)) + 4, y: y + barHeight - 1, size: 9 }),
  ];
}

export interface LinePanel {
  readonly title: string;
  readonly xLabel: string;
  /** The same for all series; drawn with equal distances. */
  readonly xs: readonly number[];
  readonly ys: readonly (readonly (number | undefined)[])[];
}

export interface LineChart {
  readonly title: string;
  readonly subtitle: string;
  readonly series: readonly string[];
  readonly columns: number;
  readonly panels: readonly LinePanel[];
}

/** Panels with a line for each series; each panel's scale starts at zero. */
export function lineChart({ title, subtitle, series, columns, panels }: LineChart): string {
  const [width, height] = [300, 220];
  const parts = [
    text(title, { x: 12, y: 22, bold: true, size: 14 }),
    text(subtitle, { x: 12, y: 40, size: 11 }),
    ...legend(series, { x: 12, y: 60 }),
    ...panels.flatMap((panel, n) =>
      drawPanel(panel, {
        x: 12 + (n % columns) * (width + 20),
        y: 80 + Math.floor(n / columns) * (height + 20),
        width,
        height,
      }),
    ),
  ];
  const rows = Math.ceil(panels.length / columns);
  return page({ title, width: 12 + columns * (width + 20), height: 80 + rows * (height + 20) }, parts);
}

/** A round number that is not below a value: 1, 2, 2.5 or 5 times a power of ten. */
export function roundUp(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 2.5, 5, 10].find((step) => step * power >= value * 0.999_999) ?? 10);
}

function drawPanel(panel: LinePanel, box: { x: number; y: number; width: number; height: number }): string[] {
  const [left, right, top, bottom] = [box.x + 44, box.x + box.width - 8, box.y + 24, box.y + box.height - 36];
  const all = panel.ys.flat().filter((value) => value !== undefined);
  const highest = roundUp(Math.max(0, ...all));
  const x = (n: number): number => left + (n / Math.max(panel.xs.length - 1, 1)) * (right - left);
  const y = (value: number): number => bottom - (value / highest) * (bottom - top);
  const marks = [0, 1, 2, 3, 4].map((n) => (highest * n) / 4);
  return [
    text(panel.title, { x: box.x, y: box.y + 12, bold: true, size: 12 }),
    ...marks.flatMap((mark) => [
      line([left, y(mark)], [right, y(mark)], `stroke="${GRID}"`),
      text(tick(mark), { x: left - 5, y: y(mark) + 4, anchor: 'end', size: 10 }),
    ]),
    ...panel.xs.map((value, n) => text(tick(value), { x: x(n), y: bottom + 14, anchor: 'middle', size: 10 })),
    text(panel.xLabel, { x: (left + right) / 2, y: bottom + 29, anchor: 'middle', size: 10 }),
    ...panel.ys.flatMap((values, n) => {
      const points = values.flatMap((value, k) =>
        value === undefined ? [] : [{ at: x(k), height: y(value) }],
      );
      const colour = seriesColours[n % seriesColours.length];
      const path = points.map(({ at, height }) => `${round(at)},${round(height)}`).join(' ');
      return [
        `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`,
        ...points.map(
          ({ at, height }) => `<circle cx="${round(at)}" cy="${round(height)}" r="3" fill="${colour}"/>`,
        ),
      ];
    }),
  ];
}
