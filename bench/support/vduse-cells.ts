/** What bench/vduse.ts measures; shared by its two halves. */
export const vduseCells = [
  { name: '4k random read, depth 1', rw: 'randread', bs: '4k', depth: 1 },
  { name: '4k random read, depth 32', rw: 'randread', bs: '4k', depth: 32 },
  { name: '4k random write, depth 1', rw: 'randwrite', bs: '4k', depth: 1 },
  { name: '4k random write, depth 32', rw: 'randwrite', bs: '4k', depth: 32 },
  { name: '128k sequential read, depth 8', rw: 'read', bs: '128k', depth: 8 },
] as const;

/** One line of the guest's output. */
export interface VduseFigure {
  readonly cell: string;
  readonly server: 'ours' | 'peer';
  readonly iops: number;
}
