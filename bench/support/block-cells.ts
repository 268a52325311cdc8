/** What the vhost-user benchmark measures: what is behind the disk, and what is asked of it. */

export const backings = ['cached', 'direct', 'null'] as const;
export type Backing = (typeof backings)[number];

export const backingTitles: Readonly<Record<Backing, string>> = {
  cached: 'page-cached file',
  direct: 'O_DIRECT file',
  null: 'null',
};

export interface Workload {
  readonly name: string;
  /** fio's names. */
  readonly rw: 'randread' | 'randwrite' | 'randrw' | 'read' | 'write';
  readonly bs: '4k' | '128k';
  readonly depth: number;
  readonly queues: number;
  /** Part of the short form. */
  readonly quick: boolean;
}

export const workloads: readonly Workload[] = [
  { name: '4k random read, depth 1', rw: 'randread', bs: '4k', depth: 1, queues: 1, quick: true },
  { name: '4k random read, depth 32', rw: 'randread', bs: '4k', depth: 32, queues: 1, quick: true },
  { name: '4k random read, depth 128', rw: 'randread', bs: '4k', depth: 128, queues: 1, quick: false },
  { name: '4k random write, depth 1', rw: 'randwrite', bs: '4k', depth: 1, queues: 1, quick: false },
  { name: '4k random write, depth 32', rw: 'randwrite', bs: '4k', depth: 32, queues: 1, quick: true },
  { name: '128k sequential read, depth 8', rw: 'read', bs: '128k', depth: 8, queues: 1, quick: false },
  { name: '128k sequential write, depth 8', rw: 'write', bs: '128k', depth: 8, queues: 1, quick: false },
  { name: '4k mixed 70/30, depth 32', rw: 'randrw', bs: '4k', depth: 32, queues: 1, quick: false },
  {
    name: '4k random read, 4 queues, depth 32',
    rw: 'randread',
    bs: '4k',
    depth: 32,
    queues: 4,
    quick: false,
  },
];

export interface Cell {
  readonly backing: Backing;
  readonly workload: Workload;
}

export function cellTitle({ backing, workload }: Cell): string {
  return `${backingTitles[backing]}: ${workload.name}`;
}

export function writes({ workload }: Cell): boolean {
  return workload.rw.includes('write') || workload.rw === 'randrw';
}

export interface CellChoice {
  readonly quick: boolean;
  /** A regular expression, looked for in the cells' titles whatever the case. */
  readonly only?: string | undefined;
}

export function chooseCells({ quick, only }: CellChoice): Cell[] {
  const pattern = new RegExp(only ?? '', 'i');
  return backings
    .flatMap((backing) => workloads.map((workload) => ({ backing, workload })))
    .filter((cell) => (cell.workload.quick || !quick) && pattern.test(cellTitle(cell)));
}
