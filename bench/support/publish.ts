/** Where results go: standard output, files, plots, the page in docs/. */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { say } from '../../lab/progress.js';
import { findTool } from '../../lab/tools.js';
import type { Table } from './compare-report.js';
import { formatTable } from './figures.js';

export function tablesAsText(tables: readonly Table[]): string {
  return tables.map(({ title, rows }) => `${title}\n${formatTable(rows)}\n`).join('\n');
}

export function tablesAsMarkdown(tables: readonly Table[]): string {
  return tables
    .map(({ title, rows: [header, ...rows] }) => {
      const row = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
      const rule = row(header.map((_, n) => (n === 0 ? '---' : '---:')));
      return [`**${title}**`, '', row(header), rule, ...rows.map(row)].join('\n');
    })
    .join('\n\n');
}

/** Puts text between a page's marks. */
export function replaceSection(page: string, { name, content }: { name: string; content: string }): string {
  const [begin, end] = [`<!-- begin generated: ${name} -->`, `<!-- end generated: ${name} -->`];
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from === -1 || to < from) throw new Error(`the page has no section between "${begin}" and "${end}"`);
  return `${page.slice(0, from + begin.length)}\n\n${content.trim()}\n\n${page.slice(to)}`;
}

/** The path of a page, or of a picture, of the documentation. */
export function docsPath(name: string): string {
  return fileURLToPath(new URL(`../../../docs/${name}`, import.meta.url));
}

export function writeSection(path: string, section: { name: string; content: string }): void {
  writeFileSync(path, replaceSection(readFileSync(path, 'utf8'), section));
  say(`wrote the section "${section.name}" of ${path}`, 'bench');
}

/** Writes PREFIX.svg, and PREFIX.png where there is a program that draws it. */
export function writePlot(prefix: string, svg: string): void {
  writeFileSync(`${prefix}.svg`, svg);
  const converter = findTool('rsvg-convert');
  if (converter === undefined) {
    say(`wrote ${prefix}.svg; no PNG: that takes rsvg-convert (apt-get install librsvg2-bin)`, 'bench');
    return;
  }
  execFileSync(converter, ['--zoom=2', '--format=png', `--output=${prefix}.png`, `${prefix}.svg`]);
  say(`wrote ${prefix}.svg and ${prefix}.png`, 'bench');
}

/** JSON to a file, or to standard output for "-". */
export function writeJson(path: string, value: object): void {
  const content = `${JSON.stringify(value, null, 1)}\n`;
  if (path === '-') process.stdout.write(content);
  else writeFileSync(path, content);
}
