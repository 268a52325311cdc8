/**
 * Our VDUSE disk beside qemu-storage-daemon's, in one boot of the lab's machine on one kernel: the same image
 * size, one queue each, interleaved repetitions. The machine is emulated, so this orders things only.
 */
import { fileURLToPath } from 'node:url';
import { say } from '../lab/progress.js';
import { runInLab } from '../lab/run.js';
import { readOptions } from './support/command.js';
import { formatCount, formatRatio, formatTable, median, pairedRatio } from './support/figures.js';
import { type VduseFigure, vduseCells } from './support/vduse-cells.js';

const options = readOptions({
  kernel: { type: 'string', default: 'stable' },
  quick: { type: 'boolean' },
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
});

const help = `Usage: npm run bench:vduse [-- --quick] [--json] [--kernel stable|unstable]

Our VDUSE disk beside qemu-storage-daemon's vduse-blk, in one boot of the lab's machine. Ratios are taken repetition by
repetition: median (lowest to highest). The machine is emulated: the figures order things and measure nothing else.
`;

const repetitions = options.quick === true ? 2 : 5;
const runSeconds = 2;

/** Splits the guest's output into lines as it comes, and tells of each figure. */
function collect(figures: VduseFigure[]): (chunk: Buffer) => void {
  let rest = '';
  return (chunk) => {
    const lines = (rest + chunk.toString()).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines.filter((text) => text.startsWith('{'))) {
      const figure = JSON.parse(line) as VduseFigure;
      figures.push(figure);
      say(`${figure.cell}: ${figure.server} ${formatCount(figure.iops)} IOPS`, 'bench');
    }
  };
}

function report(figures: readonly VduseFigure[], kernel: string): void {
  const summary = vduseCells.map(({ name }) => {
    const of = (server: string): number[] =>
      figures.filter((figure) => figure.cell === name && figure.server === server).map(({ iops }) => iops);
    return {
      cell: name,
      ours: Math.round(median(of('ours'))),
      qemuStorageDaemon: Math.round(median(of('peer'))),
      ratio: pairedRatio(of('ours'), of('peer')),
    };
  });
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify({ kernel, emulated: true, repetitions, cells: summary })}\n`);
    return;
  }
  const rows = [
    [`IOPS, medians of ${repetitions}`, 'vduse', 'qemu-storage-daemon', 'ratio (lowest to highest)'],
    ...summary.map((row) => [
      row.cell,
      formatCount(row.ours),
      formatCount(row.qemuStorageDaemon),
      formatRatio(row.ratio),
    ]),
  ];
  process.stdout.write(`${formatTable(rows)}\n`);
  process.stdout.write(
    'In an emulated machine with one processor: this orders things and measures nothing else.\n',
  );
}

async function main(): Promise<number> {
  if (options.help === true) {
    process.stdout.write(help);
    return 0;
  }
  const kernel = options.kernel === 'unstable' ? 'unstable' : 'stable';
  const figures: VduseFigure[] = [];
  const guest = fileURLToPath(new URL('./support/vduse-guest.js', import.meta.url));
  const { exitStatus, output } = await runInLab({
    command: [process.execPath, guest, String(repetitions), String(runSeconds)],
    kernel,
    smp: 1,
    timeoutMs: 900_000,
    announce: true,
    onOutput: collect(figures),
  });
  if (exitStatus !== 0) {
    say(`the guest ended with status ${exitStatus}:\n${output}`, 'bench');
    return 1;
  }
  report(figures, kernel);
  return 0;
}

process.exitCode = await main();
