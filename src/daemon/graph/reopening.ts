/** Several nodes opened again as one: each new one takes its place at once, and all go back when one can't be. */
import { errorMessage, VduseError } from '../../base/errors.js';
import type { BlockNode, BlockNodeOptions, ReopenedNode } from '../../block/node.js';
import type { GraphNode } from './graph-node.js';

interface Step {
  readonly node: GraphNode;
  readonly before: { readonly opened: BlockNode; readonly options: BlockNodeOptions };
  readonly reopened: ReopenedNode;
}

export class Reopening {
  readonly #steps: Step[] = [];

  get nodes(): GraphNode[] {
    return this.#steps.map(({ node }) => node);
  }

  /** The node is what was opened, as far as those that are opened after it can see. */
  add(node: GraphNode, reopened: ReopenedNode, options: BlockNodeOptions): void {
    this.#steps.push({ node, reopened, before: { opened: node.opened, options: node.options } });
    node.setOpened(reopened.node, options);
  }

  /** Ends what the nodes were before. Returns what did not end; the nodes are the new ones all the same. */
  async commit(): Promise<VduseError | undefined> {
    const cause = await settleAll(this.#steps.map(({ reopened }) => reopened.commit));
    return cause === undefined
      ? undefined
      : new VduseError('SYSTEM_CALL', `opened again, but not closed before: ${errorMessage(cause)}`, {
          cause,
        });
  }

  /** Goes back, the last step first. */
  async abort(): Promise<void> {
    const steps = [...this.#steps].reverse();
    for (const { node, before } of steps) {
      node.setOpened(before.opened, before.options);
    }
    await settleAll(steps.map(({ reopened }) => reopened.abort));
  }
}

/** Runs one after the other, whatever becomes of them. Returns the first failure. */
async function settleAll(operations: readonly (() => Promise<void>)[]): Promise<unknown> {
  let failed: unknown;
  for (const operation of operations) {
    try {
      await operation();
    } catch (error) {
      failed ??= error;
    }
  }
  return failed;
}
