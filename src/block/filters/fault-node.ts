/** The filter `fault`: a disk that fails by rules, for tests of what uses disks. Not in QEMU. */
import { Errno } from '../../native/errno.js';
import { BlockOp } from '../engine.js';
import type { BlockNode, ChildOpener, FaultNodeOptions, FaultRuleOptions } from '../node.js';
import { FaultEffect, type FaultRule } from './fault-engine.js';
import { FilterNode } from './filter-node.js';

const ops: Readonly<Record<NonNullable<FaultRuleOptions['on']>, BlockOp | undefined>> = {
  any: undefined,
  read: BlockOp.READ,
  write: BlockOp.WRITE,
  flush: BlockOp.FLUSH,
  discard: BlockOp.DISCARD,
  'write-zeroes': BlockOp.WRITE_ZEROES,
};

const effects: Readonly<Record<FaultRuleOptions['effect'], FaultEffect>> = {
  error: FaultEffect.ERROR,
  delay: FaultEffect.DELAY,
  'late-error': FaultEffect.LATE_ERROR,
  disconnect: FaultEffect.DISCONNECT,
};

const timesMax = 0xffff_ffff;
const delayMsDefault = 100;

function toRule(options: FaultRuleOptions): FaultRule {
  const op = ops[options.on ?? 'any'];
  return {
    effect: effects[options.effect],
    ...(op === undefined ? {} : { op }),
    errno: options.errno ?? Errno.EIO,
    delayMs: options.delayMs ?? delayMsDefault,
    oneIn: options.oneIn ?? 1,
    after: options.after ?? 0,
    times: options.times ?? timesMax,
  };
}

/** Throws what opening the child throws. */
export async function openFaultNode(options: FaultNodeOptions, children: ChildOpener): Promise<BlockNode> {
  const rules = (options.rules ?? []).map(toRule);
  const child = await children.open('file', options.file);
  return new FilterNode(options, child, {
    wrap: (engine) => ({ kind: 'fault', seed: options.seed ?? 0, rules, child: engine }),
    reopen: (changed, opener) => openFaultNode(changed as FaultNodeOptions, opener),
  });
}
