/** A node that is its child but for an engine of its own around the child's. */
import type { EngineSpec } from '../engine.js';
import type {
  BlockFeatures,
  BlockNode,
  BlockNodeListener,
  BlockNodeOptions,
  ChildOpener,
  ReopenedNode,
} from '../node.js';

export interface FilterKind {
  wrap(child: EngineSpec): EngineSpec;
  reopen(options: BlockNodeOptions, children: ChildOpener): Promise<BlockNode>;
}

export class FilterNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  readonly filename = undefined;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly child: BlockNode;
  readonly #options: BlockNodeOptions;
  readonly #kind: FilterKind;

  constructor(options: BlockNodeOptions, child: BlockNode, kind: FilterKind) {
    this.nodeName = options.nodeName;
    this.driver = options.driver;
    this.readOnly = options.readOnly ?? false;
    this.cacheDirect = options.cache?.direct ?? false;
    this.cacheNoFlush = options.cache?.noFlush ?? false;
    this.child = child;
    this.#options = options;
    this.#kind = kind;
  }

  get detectZeroes() {
    const own = this.#options.detectZeroes ?? 'off';
    return own === 'off' ? this.child.detectZeroes : own;
  }

  get features(): BlockFeatures {
    return this.child.features;
  }

  get limits() {
    return this.child.limits;
  }

  get size(): number {
    return this.child.size;
  }

  get engine(): EngineSpec {
    return this.#kind.wrap(this.child.engine);
  }

  resize(size: number): Promise<void> {
    return this.child.resize(size);
  }

  watch(listener: BlockNodeListener): void {
    this.child.watch?.(listener);
  }

  async reopen(options: BlockNodeOptions, children: ChildOpener): Promise<ReopenedNode> {
    const node = await this.#kind.reopen(options, children);
    return { node, commit: () => this.close(), abort: () => node.close() };
  }

  close(): Promise<void> {
    return this.child.close();
  }
}
