/** vduse bench: how fast a block node is, without a kernel or a client in front of it. */
import { type Command, Option } from 'commander';
import {
  type CommandContext,
  checkedOption,
  createCommand,
  integerIn,
  secondsIn,
} from '../support/command.js';
import { parseSize } from '../support/size.js';

export const accessPatterns = ['read', 'write', 'randread', 'randwrite', 'rw', 'randrw'] as const;

/** By fio's names, where it has them. */
export interface BenchFlags {
  readonly rw: (typeof accessPatterns)[number];
  readonly bs: number;
  readonly iodepth: number;
  readonly numjobs: number;
  readonly runtime: number;
  readonly ramp_time: number;
  readonly rwmixread: number;
  readonly size?: number;
  readonly offset: number;
  readonly direct?: true;
  readonly write?: true;
  readonly object?: readonly string[];
  readonly json?: true;
}

const hour = 3600;

const examples = `
Reads or writes the node in this process, with the engine that exports use, on a thread for each job. The options are
named as fio names them. NODE is what 'vduse export' takes as IMAGE. Without --direct a file is mostly measured in the
host's page cache. Whatever writes needs --write: what the node held is lost.

Examples:
  vduse bench disk.img --direct
  vduse bench /dev/nvme0n1 --direct --rw read --bs 1M --iodepth 8
  vduse bench rbd:pool/scratch --rw randwrite --size 1G --write
  vduse bench null:1G --numjobs 4 --json | jq .read.iops`;

export function benchCommand(context: CommandContext): Command {
  return createCommand('bench', 'measure how fast an image or storage is, in this process')
    .argument('<node>', 'image, disk or filename')
    .addOption(new Option('--rw <pattern>', 'what to do').choices(accessPatterns).default('randread'))
    .addOption(checkedOption('--bs <size>', 'bytes of a request', parseSize).default(4096, '4K'))
    .addOption(
      checkedOption(
        '--iodepth <n>',
        'requests in flight, for each job',
        integerIn({ min: 1, max: 1024 }),
      ).default(32),
    )
    .addOption(
      checkedOption(
        '--numjobs <n>',
        'jobs, each with a thread and a queue',
        integerIn({ min: 1, max: 256 }),
      ).default(1),
    )
    .addOption(
      checkedOption('--runtime <seconds>', 'how long', secondsIn({ min: 0.1, max: 24 * hour })).default(5),
    )
    .addOption(
      checkedOption(
        '--ramp_time <seconds>',
        'before that, without counting',
        secondsIn({ min: 0, max: hour }),
      ).default(0),
    )
    .addOption(
      checkedOption(
        '--rwmixread <percent>',
        'reads among the requests of rw and randrw',
        integerIn({ min: 0, max: 100 }),
      ).default(50),
    )
    .addOption(checkedOption('--size <size>', 'bytes to work on (default: all)', parseSize))
    .addOption(checkedOption('--offset <size>', 'where they begin', parseSize).default(0))
    .option('--direct', "bypass the host's page cache (O_DIRECT)")
    .option('--write', 'confirm that what the node holds may be overwritten')
    .option('--object <options>', 'a secret or credentials that the node refers to; may be repeated', collect)
    .option('--json', 'print the figures as JSON')
    .addHelpText('after', examples)
    .action(async (node: string, flags: BenchFlags) => {
      const { runBench } = await import('../support/run-bench.js');
      await runBench(node, flags, context);
    });
}

function collect(text: string, before: readonly string[] = []): string[] {
  return [...before, text];
}
