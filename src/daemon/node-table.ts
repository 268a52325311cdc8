/** The graph of block nodes of a daemon: nodes by name, their children, and what uses them. */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import type { BlockNode, BlockNodeOptions, ChildOpener, UnnamedNodeOptions } from '../block/node.js';
import type { ThrottleGroup } from '../block/throttle-group.js';
import { drainedTogether, GraphNode, type NodeUser } from './graph/graph-node.js';
import { allPermissions, Permission } from './graph/permissions.js';
import { Reopening } from './graph/reopening.js';
import { identifierHint, isIdentifier } from './identifier.js';

export type NodeOpener = (options: BlockNodeOptions, children: ChildOpener) => Promise<BlockNode>;

/** QEMU: the length of a node name with its terminator. */
const NODE_NAME_BYTES = 32;

/** Sizes are counted in sectors (virtio 5.2.4); QEMU rounds a new size up as well. */
const SECTOR_BYTES = 512;

export interface NodeTableOptions {
  readonly open: NodeOpener;
  readonly throttleGroup: (id: string) => ThrottleGroup | undefined;
  /** How long a change waits for requests in flight; limits.drainMsMax when absent. */
  readonly drainTimeoutMs?: number;
}

export class NodeTable {
  readonly #drainTimeoutMs: number;
  readonly #open: NodeOpener;
  readonly #throttleGroup: (id: string) => ThrottleGroup | undefined;
  readonly #nodes = new Map<string, GraphNode>();
  #nextGenerated = 0;

  constructor(options: NodeTableOptions) {
    this.#open = options.open;
    this.#throttleGroup = options.throttleGroup;
    this.#drainTimeoutMs = options.drainTimeoutMs ?? limits.drainMsMax;
  }

  /** The newest first, as QEMU lists them. */
  get entries(): GraphNode[] {
    return [...this.#nodes.values()].reverse();
  }

  /** A node that stays until it is deleted. */
  async add(options: BlockNodeOptions): Promise<GraphNode> {
    this.checkName(options.nodeName);
    return this.#openNode(options, false);
  }

  /** By the two names of QEMU's commands. There are no devices here, so `device` never finds anything. */
  find(names: { device?: string | undefined; nodeName?: string | undefined }): GraphNode {
    const { device = '', nodeName = '' } = names;
    const node = device === '' ? this.#nodes.get(nodeName) : undefined;
    if (node === undefined) {
      throw this.#notFound(device, nodeName);
    }
    return node;
  }

  /** As an option of another node or of a job names it. */
  refer(name: string): GraphNode {
    const node = this.#nodes.get(name);
    if (node === undefined) {
      throw this.#notFound(name, name);
    }
    return node;
  }

  #notFound(device: string, nodeName: string): VduseError {
    const names = [...this.#nodes.keys()].filter((name) => !name.startsWith('#'));
    return new VduseError('NOT_FOUND', `Cannot find device='${device}' nor node-name='${nodeName}'`, {
      hint: names.length === 0 ? 'There is no node yet: add one first.' : `There are: ${names.join(', ')}.`,
    });
  }

  /** Each before the nodes that it works on, the newest first; without inline nodes, which go with another. */
  fromTheTop(): GraphNode[] {
    const above = new Set<GraphNode>();
    const take = (node: GraphNode): void => {
      if (!above.has(node)) {
        for (const parent of this.entries.filter(({ childNode }) => childNode === node)) {
          take(parent);
        }
        above.add(node);
      }
    };
    this.entries.forEach(take);
    return [...above].filter(({ isInline }) => !isInline);
  }

  usesThrottleGroup(id: string): boolean {
    return this.entries.some(({ options }) => options.driver === 'throttle' && options.throttleGroup === id);
  }

  /** Closes a node that nothing uses. */
  async delete(nodeName: string): Promise<void> {
    const node = this.#known(nodeName);
    const users = [...node.links].map((link) => link.user);
    if (users.some(({ role }) => role === rootRole)) {
      throw new VduseError('BUSY', `Node ${nodeName} is in use`);
    }
    if (node.isInline) {
      throw new VduseError('BUSY', `Node ${nodeName} is not owned by the monitor`, {
        hint: 'It was opened with the node above it, and goes with that one.',
      });
    }
    if (users.length > 0) {
      throw new VduseError('BUSY', `Block device ${nodeName} is in use`, {
        hint: `It is used by ${users.map(({ description }) => description).join(', ')}.`,
      });
    }
    await node.close();
  }

  async resize(node: GraphNode, size: number): Promise<void> {
    if (size < 0) {
      throw new VduseError('INVALID_ARGUMENT', "Parameter 'size' expects a >0 size");
    }
    if (isReadOnly(node)) {
      throw new VduseError('IMAGE_READ_ONLY', 'Image is read-only');
    }
    const permissions = { uses: Permission.RESIZE, shares: allPermissions };
    const link = node.attach({ ...unnamedUser, permissions: () => permissions, resized: () => undefined });
    try {
      await node.resize(Math.ceil(size / SECTOR_BYTES) * SECTOR_BYTES);
    } finally {
      await link.close();
    }
  }

  /** Opens nodes again with other options while their users stand still: all of them, or when one can't be, none. */
  async reopen(nodes: readonly BlockNodeOptions[]): Promise<void> {
    const requests = nodes.map((options) => ({ node: this.#known(options.nodeName), options }));
    const reopening = new Reopening();
    let left: VduseError | undefined;
    const all = requests.flatMap(({ node }) => withInlineChildren(node));
    await drainedTogether(all, async () => {
      try {
        for (const { node, options } of requests) {
          await this.#reopen(reopening, node, options);
        }
      } catch (error) {
        await reopening.abort();
        throw error;
      }
      left = await reopening.commit();
    });
    for (const node of reopening.nodes) {
      node.resized();
    }
    if (left !== undefined) {
      throw left;
    }
  }

  async #reopen(reopening: Reopening, node: GraphNode, options: BlockNodeOptions): Promise<void> {
    const { nodeName, opened } = node;
    if (options.driver !== node.options.driver) {
      throw new VduseError('INVALID_ARGUMENT', "Cannot change the option 'driver'");
    }
    if (opened.reopen === undefined) {
      throw new VduseError(
        'NOT_SUPPORTED',
        `Block format '${node.driver}' used by node '${nodeName}' does not support reopening files`,
      );
    }
    if (options.readOnly === true && (node.permissions().uses & Permission.WRITE) !== 0) {
      throw new VduseError('BUSY', `Read-only block node '${nodeName}' cannot support read-write users`, {
        hint: 'Delete its writable exports first.',
      });
    }
    if (node.isInterposed) {
      throw new VduseError('BUSY', `Node ${nodeName} is in use by a job`);
    }
    reopening.add(node, await opened.reopen(options, this.#childrenOf(node, options, reopening)), options);
  }

  /** Whether a node may have the name. `what` is put before the error. */
  checkName(nodeName: string, what = ''): void {
    if (!isIdentifier(nodeName)) {
      throw new VduseError('INVALID_ARGUMENT', `${what}Invalid node-name: '${nodeName}'`, {
        hint: identifierHint,
      });
    }
    if (Buffer.byteLength(nodeName) >= NODE_NAME_BYTES) {
      throw new VduseError('INVALID_ARGUMENT', `${what}Node name too long`, {
        hint: `at most ${NODE_NAME_BYTES - 1} bytes`,
      });
    }
    if (this.#nodes.has(nodeName)) {
      throw new VduseError('ALREADY_EXISTS', `${what}Duplicate nodes with node-name='${nodeName}'`);
    }
  }

  #known(nodeName: string): GraphNode {
    const node = this.#nodes.get(nodeName);
    if (node === undefined) {
      throw new VduseError('NOT_FOUND', `Failed to find node with node-name='${nodeName}'`);
    }
    return node;
  }

  async #openNode(options: BlockNodeOptions, isInline: boolean): Promise<GraphNode> {
    const onClosed = (closed: GraphNode) => this.#nodes.delete(closed.nodeName);
    const node = new GraphNode({ options, isInline, onClosed, drainTimeoutMs: this.#drainTimeoutMs });
    node.setOpened(await this.#open(options, this.#childrenOf(node, options)), options);
    this.#nodes.set(options.nodeName, node);
    return node;
  }

  /** Opens children for a node, which may be under way itself. */
  #childrenOf(parent: GraphNode, options: BlockNodeOptions, reopening?: Reopening): ChildOpener {
    return {
      throttleGroup: (id) => this.#throttleGroup(id)?.buffer,
      open: async (role, reference) => {
        const child =
          typeof reference === 'string'
            ? this.refer(reference)
            : await this.#openInline(parent, inheritFrom(options, reference), reopening);
        checkNoCycle(parent, child, role);
        try {
          return child.attach(parentUser(parent, role));
        } catch (error) {
          await child.closeIfUnused();
          throw error;
        }
      },
    };
  }

  /** Opens a child by its own options; a parent that is opened again keeps the one that it has. */
  async #openInline(
    { childNode }: GraphNode,
    options: UnnamedNodeOptions,
    reopening: Reopening | undefined,
  ): Promise<GraphNode> {
    const nodeName = options.nodeName ?? childNode?.nodeName;
    if (reopening !== undefined && childNode?.isInline === true && childNode.nodeName === nodeName) {
      await this.#reopen(reopening, childNode, named(options, nodeName));
      return childNode;
    }
    if (options.nodeName !== undefined) {
      this.checkName(options.nodeName);
    }
    return this.#openNode(named(options, options.nodeName ?? this.#generateName()), true);
  }

  /** As QEMU does: a number that counts, and digits that keep people from relying on it. */
  #generateName(): string {
    const random = Math.floor(Math.random() * 100);
    return `#block${this.#nextGenerated++}${String(random).padStart(2, '0')}`;
  }
}

/** Of a node itself, or of one below. */
function isReadOnly(node: BlockNode): boolean {
  return node.readOnly || (node.child !== undefined && isReadOnly(node.child));
}

/** What exports, jobs and commands call their node. */
export const rootRole = 'root';

/** QEMU's words for a user that is neither a node nor a job. */
export const unnamedUser = { description: 'an unnamed block device', role: rootRole } as const;

/** A node as the user of its child: it does what its own users do. */
function parentUser(parent: GraphNode, role: string): NodeUser {
  return {
    description: `node '${parent.nodeName}'`,
    role,
    permissions: () => {
      const { uses, shares } = parent.permissions();
      const unshared =
        (parent.pinsChildSize ? Permission.RESIZE : 0) | (parent.isBackedUp ? Permission.WRITE : 0);
      return { uses, shares: shares & ~unshared };
    },
    resized: () => parent.resized(),
    parent,
  };
}

/** Throws INVALID_ARGUMENT where the child is the parent, or works on it. */
function checkNoCycle(parent: GraphNode, child: GraphNode, role: string): void {
  const above = new Set([parent]);
  // Grows while it is walked.
  for (const node of above) {
    for (const { user } of node.links) {
      if (user.parent !== undefined) {
        above.add(user.parent);
      }
    }
  }
  if (above.has(child)) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `Making '${child.nodeName}' a ${role} child of '${parent.nodeName}' would create a cycle`,
      { hint: `A node that leaves its place above '${parent.nodeName}' does so by a command before.` },
    );
  }
}

/** A node and the nodes below that go with it. */
function withInlineChildren(node: GraphNode): GraphNode[] {
  const { childNode } = node;
  return childNode?.isInline === true ? [node, ...withInlineChildren(childNode)] : [node];
}

/** As in QEMU: access and cache mode come from above; a child leaves discards to its parent's decision. */
function inheritFrom(parent: BlockNodeOptions, written: UnnamedNodeOptions): UnnamedNodeOptions {
  const readOnly = written.readOnly ?? parent.readOnly;
  return {
    discard: 'unmap',
    ...written,
    ...(readOnly === undefined ? {} : { readOnly }),
    cache: { ...parent.cache, ...written.cache },
  };
}

const named = (options: UnnamedNodeOptions, nodeName: string): BlockNodeOptions => ({ ...options, nodeName });
