/** Builds an engine on the thread of its queue from the node's plain description. */
import type { AlignedPool } from '../memory/aligned-pool.js';
import type { Reactor } from '../reactor/reactor.js';
import { FileEngine } from './drivers/file-engine.js';
import { LocalEngine } from './drivers/local-engine.js';
import { NbdEngine } from './drivers/nbd-client/nbd-engine.js';
import { NullEngine } from './drivers/null-engine.js';
import { RawEngine } from './drivers/raw-engine.js';
import { RbdEngine } from './drivers/rbd/rbd-engine.js';
import type { BlockCompletionSink, BlockEngine, EngineSpec } from './engine.js';
import { BackupEngine } from './filters/backup-engine.js';
import { FaultEngine } from './filters/fault-engine.js';
import { MirrorEngine } from './filters/mirror-engine.js';
import { ThrottleEngine } from './filters/throttle-engine.js';
import type { RequestTable } from './request-table.js';

export interface EngineContext {
  readonly table: RequestTable;
  readonly sink: BlockCompletionSink;
  readonly reactor: Reactor;
  readonly pool: AlignedPool;
}

export function createEngine(spec: EngineSpec, context: EngineContext): BlockEngine {
  switch (spec.kind) {
    case 'file':
      return new FileEngine({ spec, ...context });
    case 'null':
      return new NullEngine(spec, context.table, context.sink);
    case 'rbd':
      return new RbdEngine(spec, context.table, context.sink, context.reactor);
    case 'nbd':
      return new NbdEngine(spec, context.table, context.sink, context.reactor);
    case 'local':
      return new LocalEngine(spec.key, context.table, context.sink, context.reactor);
    case 'mirror': {
      const { child, target } = spec;
      return new MirrorEngine(spec, context.table, context.sink, {
        child: (sink) => createEngine(child, { ...context, sink }),
        ...(target === undefined
          ? {}
          : { target: (table, sink) => createEngine(target, { ...context, table, sink }) }),
      });
    }
    case 'backup':
      return new BackupEngine(spec, context, createEngine(spec.child, context));
    case 'throttle':
      return new ThrottleEngine(spec, context, createEngine(spec.child, context));
    case 'fault':
      return new FaultEngine(spec, context, (sink) => createEngine(spec.child, { ...context, sink }));
    case 'raw':
      return new RawEngine(spec, context.table, context.sink, createEngine(spec.child, context));
  }
}
