/** The nodes of a graph and what connects them to their users: exports, jobs, and the nodes above them. */
import { VduseError } from '../../base/errors.js';
import type { EngineSpec } from '../../block/engine.js';
import type { BlockNode, BlockNodeOptions } from '../../block/node.js';
import { NodeProxy } from './node-proxy.js';
import { allPermissions, Permission, type Permissions, permissionNames } from './permissions.js';

/** Whoever uses a node. */
export interface NodeUser {
  /** For the errors of others, in QEMU's words, such as `node 'disk0'`. */
  readonly description: string;
  /** What the user calls the node: `root` for exports and jobs, the option's name for a node above. */
  readonly role: string;
  permissions(): Permissions;
  /** The node's size is another one. */
  resized(): void;
  /**
   * Ends what is in flight, runs `change` while nothing moves, and goes on with what the node's engine is then, also
   * when the change fails. Throws TIMEOUT when what is in flight lasts longer: then nothing was changed. Absent: nothing
   * is ever in flight.
   */
  drained?(change: () => Promise<void>, timeoutMs: number): Promise<void>;
  /** The node above, where the user is one. */
  readonly parent?: GraphNode;
  /** Draining the user means draining the users of this node too: what it does is part of their requests. */
  readonly alsoDrains?: GraphNode;
  /** The requests of others end by what this user does: it is drained after them. */
  readonly drainsLast?: boolean;
}

/** One use of a node, and the node as its user sees it. `close` ends the use. */
export class NodeLink extends NodeProxy {
  readonly user: NodeUser;
  #node: GraphNode;

  constructor(node: GraphNode, user: NodeUser) {
    super();
    this.#node = node;
    this.user = user;
  }

  get node(): GraphNode {
    return this.#node;
  }

  protected override get target(): BlockNode {
    return this.#node;
  }

  /** The use goes over to another node. Its user has been drained. */
  moveTo(node: GraphNode): void {
    this.#node.links.delete(this);
    this.#node = node;
    node.links.add(this);
  }

  override async close(): Promise<void> {
    this.#node.links.delete(this);
    await this.#node.closeIfUnused();
  }
}

/** A job as the nodes that it works on know it. */
export interface NodeJob {
  readonly kind: string;
  /** It copies the node, which any number of such jobs may do. */
  readonly isBackupOfIt?: boolean;
}

export interface GraphNodeOptions {
  readonly options: BlockNodeOptions;
  /** Opened for one parent, with which it goes. */
  readonly isInline: boolean;
  readonly onClosed: (node: GraphNode) => void;
  /** How long a change waits for requests in flight. */
  readonly drainTimeoutMs: number;
}

export class GraphNode extends NodeProxy {
  /** In the order in which they came. */
  readonly links = new Set<NodeLink>();
  readonly isInline: boolean;
  readonly drainTimeoutMs: number;
  options: BlockNodeOptions;
  /** The jobs that work on it, each with what stands for it. */
  readonly jobs = new Map<object, NodeJob>();
  /** Put around the engine by jobs that have to see what users write. */
  readonly #wraps = new Map<object, (engine: EngineSpec) => EngineSpec>();
  #opened: BlockNode | undefined;
  readonly #onClosed: (node: GraphNode) => void;
  #closed = false;

  constructor(settings: GraphNodeOptions) {
    super();
    this.options = settings.options;
    this.isInline = settings.isInline;
    this.drainTimeoutMs = settings.drainTimeoutMs;
    this.#onClosed = settings.onClosed;
  }

  /** The block driver's node. */
  get opened(): BlockNode {
    return this.#opened!;
  }

  protected override get target(): BlockNode {
    return this.#opened!;
  }

  override get nodeName(): string {
    return this.options.nodeName;
  }

  override get engine(): EngineSpec {
    let { engine } = this.opened;
    for (const wrap of this.#wraps.values()) {
      engine = wrap(engine);
    }
    return engine;
  }

  /** Whether nobody but this node may resize its child. */
  get pinsChildSize(): boolean {
    return this.#opened?.pinsChildSize === true;
  }

  override async resize(size: number): Promise<void> {
    await this.opened.resize(size);
    if (this.childNode === undefined) {
      // Where there is a child, the news came up from there.
      this.resized();
    }
  }

  get isInterposed(): boolean {
    return this.#wraps.size > 0;
  }

  /** Puts something around the engine for a job, or takes it away. The users have been drained. */
  interpose(job: object, wrap: ((engine: EngineSpec) => EngineSpec) | undefined): void {
    if (wrap === undefined) {
      this.#wraps.delete(job);
    } else {
      this.#wraps.set(job, wrap);
    }
  }

  isInterposedBy(job: object): boolean {
    return this.#wraps.has(job);
  }

  /** A job copies it as it was at one moment, and sees only what is written through it. */
  get isBackedUp(): boolean {
    return [...this.jobs.values()].some(({ isBackupOfIt }) => isBackupOfIt === true);
  }

  /** Throws BUSY where jobs work on the node. */
  checkNoJob(options: { readonly butBackups?: boolean } = {}): void {
    for (const { kind, isBackupOfIt } of this.jobs.values()) {
      if (options.butBackups !== true || isBackupOfIt !== true) {
        throw new VduseError(
          'BUSY',
          `Node '${this.nodeName}' is busy: block device is in use by block job: ${kind}`,
        );
      }
    }
  }

  /** Sets what the block driver opened, for the first time or again, or once more what it was before. */
  setOpened(node: BlockNode, options: BlockNodeOptions): void {
    this.#opened = node;
    this.options = options;
    node.watch?.({ onResize: () => this.resized() });
  }

  /** The node is used from now on. Throws BUSY where users conflict, and IMAGE_READ_ONLY. */
  attach(user: NodeUser): NodeLink {
    const link = new NodeLink(this, user);
    this.links.add(link);
    try {
      this.checkPermissions();
    } catch (error) {
      this.links.delete(link);
      throw error;
    }
    return link;
  }

  /** What all users together do, and what each of them bears. */
  permissions(): Permissions {
    let uses = 0;
    let shares: number = allPermissions;
    for (const { user } of this.links) {
      const permissions = user.permissions();
      uses |= permissions.uses;
      shares &= permissions.shares;
    }
    return { uses, shares };
  }

  /** Of this node and the nodes below, as users are now. */
  checkPermissions(): void {
    const { uses } = this.permissions();
    if ((uses & (Permission.WRITE | Permission.RESIZE)) !== 0 && this.#opened?.readOnly === true) {
      throw new VduseError('IMAGE_READ_ONLY', 'Block node is read-only', {
        hint: `Node '${this.nodeName}' is read-only: open it with read-only=off.`,
      });
    }
    const links = [...this.links];
    for (const link of links) {
      for (const other of links) {
        checkPair(link, other);
      }
    }
    this.childNode?.checkPermissions();
  }

  /** The node below, if there is one. */
  get childNode(): GraphNode | undefined {
    const child = this.#opened?.child;
    return child instanceof NodeLink ? child.node : undefined;
  }

  /** Tells the users, the newest first, as QEMU lists them. */
  resized(): void {
    for (const { user } of [...this.links].reverse()) {
      user.resized();
    }
  }

  /**
   * Runs a change while no user of the node, nor one above, has anything in flight. Throws TIMEOUT, with nothing
   * changed, when that does not come to be.
   */
  drained(change: () => Promise<void>): Promise<void> {
    return drainedTogether([this], change);
  }

  /** An inline node goes with its last user. */
  async closeIfUnused(): Promise<void> {
    if (this.isInline && this.links.size === 0) {
      await this.close();
    }
  }

  override async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      this.#onClosed(this);
      await this.#opened?.close();
    }
  }
}

/**
 * Runs a change while no user of the nodes, nor one above, has anything in flight. Each user is asked once, first those
 * whose requests end by what others do.
 */
export function drainedTogether(nodes: readonly GraphNode[], change: () => Promise<void>): Promise<void> {
  const users = new Set<NodeUser>();
  const seen = new Set<GraphNode>();
  const collect = (node: GraphNode): void => {
    if (seen.has(node)) {
      return;
    }
    seen.add(node);
    for (const { user } of node.links) {
      if (user.parent !== undefined) {
        collect(user.parent);
      }
      if (user.alsoDrains !== undefined) {
        collect(user.alsoDrains);
      }
      if (user.drained !== undefined) {
        users.add(user);
      }
    }
  };
  nodes.forEach(collect);
  const timeoutMs = Math.min(...nodes.map((node) => node.drainTimeoutMs));
  let run = change;
  // The first is the innermost.
  for (const user of [...users].sort((a, b) => drainOrder(a) - drainOrder(b))) {
    const inner = run;
    run = () => user.drained!(inner, timeoutMs);
  }
  return run();
}

function drainOrder({ drainsLast = false }: NodeUser): number {
  return drainsLast ? 0 : 1;
}

function checkPair(link: NodeLink, other: NodeLink): void {
  const conflict = link.user.permissions().uses & ~other.user.permissions().shares;
  if (link.user === other.user || conflict === 0) {
    return;
  }
  throw new VduseError(
    'BUSY',
    `Permission conflict on node '${link.nodeName}': permissions '${permissionNames(conflict)}' are both required by ${describe(link)} and unshared by ${describe(other)}.`,
    { hint: 'Delete the other user first.' },
  );
}

function describe({ user, nodeName }: NodeLink): string {
  return `${user.description} (uses node '${nodeName}' as '${user.role}' child)`;
}
