/** A node that stands for another one, which may change. */
import type { EngineSpec } from '../../block/engine.js';
import type { BlockFeatures, BlockLimits, BlockNode, DetectZeroes } from '../../block/node.js';

export abstract class NodeProxy implements BlockNode {
  protected abstract get target(): BlockNode;

  get nodeName(): string {
    return this.target.nodeName;
  }

  get driver(): string {
    return this.target.driver;
  }

  get child(): BlockNode | undefined {
    return this.target.child;
  }

  get filename(): string | undefined {
    return this.target.filename;
  }

  get readOnly(): boolean {
    return this.target.readOnly;
  }

  get cacheDirect(): boolean {
    return this.target.cacheDirect;
  }

  get cacheNoFlush(): boolean {
    return this.target.cacheNoFlush;
  }

  get detectZeroes(): DetectZeroes {
    return this.target.detectZeroes;
  }

  get features(): BlockFeatures {
    return this.target.features;
  }

  get limits(): BlockLimits {
    return this.target.limits;
  }

  get size(): number {
    return this.target.size;
  }

  get engine(): EngineSpec {
    return this.target.engine;
  }

  resize(size: number): Promise<void> {
    return this.target.resize(size);
  }

  abstract close(): Promise<void>;
}
