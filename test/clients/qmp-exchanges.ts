/** Commands that qemu-storage-daemon and ours are given, one after the other, on the same set-up. */

export interface Exchange {
  /** Under this name a known difference is listed. */
  readonly name: string;
  readonly command: string;
  readonly arguments?: object;
}

/** Both daemons run in a folder of their own, which holds these images. */
export const images = { data: 'a.img', other: 'b.img', odd: 'odd.img' } as const;

export const setUp: readonly string[] = [
  ...['--chardev', 'socket,id=mon,path=qmp.sock,server=on,wait=off', '--monitor', 'mon'],
  ...['--object', 'iothread,id=io0'],
  ...['--blockdev', `file,node-name=f0,filename=${images.data},discard=unmap`],
  ...['--blockdev', 'null-co,node-name=n0,size=1048576,read-zeroes=on'],
  ...['--nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
  ...['--export', 'nbd,id=e0,node-name=f0,name=disk'],
];

const exchange = (command: string, args?: object, name = command): Exchange =>
  args === undefined ? { name, command } : { name, command, arguments: args };

export const readOnly: readonly Exchange[] = [
  exchange('query-version'),
  exchange('query-commands'),
  exchange('query-chardev'),
  exchange('query-named-block-nodes'),
  exchange('query-named-block-nodes', { flat: true }, 'query-named-block-nodes flat'),
  exchange('query-named-block-nodes', { flat: 'yes' }, 'a flag of the wrong type'),
  exchange('query-named-block-nodes', { flt: true }, 'an argument that is not known'),
  exchange('query-block-exports'),
  exchange('query-block-exports', { id: 'e0' }, 'arguments for a command that has none'),
  exchange('query-jobs'),
  exchange('query-block-jobs'),
  exchange('query-block'),
  exchange('query-blockstats'),
  exchange('query-blockstats', { 'query-nodes': true }, 'query-blockstats of nodes'),
  exchange('query-blockstats', { 'query-nodes': 1 }, 'query-blockstats with a wrong type'),
  exchange('qom-list', { path: '/' }, 'qom-list of the root'),
  exchange('qom-list', { path: '/objects' }, 'qom-list of objects'),
  exchange('qom-list', { path: '/chardevs' }, 'qom-list of character devices'),
  exchange('qom-list', { path: '/nothing' }, 'qom-list of nothing'),
  exchange('qom-list', {}, 'qom-list without a path'),
  exchange('qom-get', { path: '/objects', property: 'type' }, 'qom-get of a type'),
  exchange('qom-get', { path: '/objects/io0', property: 'type' }, 'qom-get of an object'),
  exchange('qom-get', { path: '/objects', property: 'io0' }, 'qom-get of a child'),
  exchange('qom-get', { path: '/objects/io0', property: 'zz' }, 'qom-get of no property'),
  exchange('qom-get', { path: '/zz', property: 'type' }, 'qom-get of no object'),
  exchange('nope', {}, 'a command that does not exist'),
  exchange('qmp_capabilities', {}, 'negotiation when it is over'),
  exchange('query-version', { x: 1 }, 'query-version with arguments'),
  exchange('job-cancel', { id: 'zz' }, 'job-cancel of no job'),
  exchange('job-pause', { id: 'zz' }, 'job-pause of no job'),
  exchange('block-job-cancel', { device: 'zz' }, 'block-job-cancel of no job'),
];

const nullNode = (name: string, more: object = {}) => ({ driver: 'null-co', 'node-name': name, ...more });
const nbd = (id: string, node: string, more: object = {}) => ({
  type: 'nbd',
  id,
  'node-name': node,
  ...more,
});

export const changing: readonly Exchange[] = [
  exchange('blockdev-add', { driver: 'file', 'node-name': 'f1', filename: images.other }, 'add a file'),
  exchange('blockdev-add', nullNode('n1', { 'read-only': true }), 'add a read-only node'),
  exchange('blockdev-add', nullNode('f1'), 'add a node twice'),
  exchange('blockdev-add', { driver: 'file', 'node-name': 'x', filename: 'none.img' }, 'add a missing file'),
  exchange('blockdev-add', { driver: 'nope', 'node-name': 'x' }, 'add a node of no driver'),
  exchange('blockdev-add', nullNode('x', { size: 'big' }), 'add a node of a wrong size'),
  exchange(
    'blockdev-add',
    nullNode('x', { cache: { dirct: true } }),
    'add a node with a key that is not known',
  ),
  exchange('blockdev-add', nullNode('x', { 'detect-zeroes': 'unmap' }), 'detect-zeroes without discard'),
  exchange('blockdev-del', { 'node-name': 'f0' }, 'delete a node that is used'),
  exchange('blockdev-del', { 'node-name': 'zz' }, 'delete no node'),
  exchange('block_resize', { 'node-name': 'f1', size: 20 << 20 }, 'resize a file'),
  exchange('block_resize', { 'node-name': 'n1', size: 512 }, 'resize a read-only node'),
  exchange('block_resize', { 'node-name': 'f1', size: -1 }, 'resize to less than nothing'),
  exchange('block-export-add', nbd('e1', 'f1', { writable: true }), 'export a node'),
  exchange('block-export-add', nbd('e1', 'f1'), 'export under an id that is used'),
  exchange('block-export-add', nbd('e2', 'f1', { name: 'disk' }), 'export under a name that is used'),
  exchange('block-export-add', nbd('e2', 'zz'), 'export no node'),
  exchange('block-export-add', nbd('e2', 'n1', { writable: true }), 'export a read-only node to be written'),
  exchange('block-export-add', nbd('9', 'n1'), 'export under an id that is none'),
  exchange('block-export-add', nbd('e2', 'n1', { bitmaps: ['b'] }), 'export a bitmap that there is not'),
  exchange('block-export-add', { type: 'none', id: 'e2', 'node-name': 'n1' }, 'export as nothing'),
  exchange('block-export-add', { type: 'nbd', id: 'e2' }, 'export without a node'),
  exchange('nbd-server-add', { device: 'n1', writable: true }, 'the older command to export'),
  exchange('nbd-server-add', { device: 'zz' }, 'the older command, and no node'),
  exchange('nbd-server-remove', { name: 'n1' }, 'the older command to end an export'),
  exchange('nbd-server-remove', { name: 'zz' }, 'the older command, and no export'),
  exchange(
    'nbd-server-start',
    { addr: { type: 'unix', data: { path: 'second.sock' } } },
    'start an NBD server twice',
  ),
  exchange(
    'nbd-server-start',
    { addr: { type: 'unix', path: 'x' } },
    'start an NBD server with a flat address',
  ),
  exchange('query-block-exports', undefined, 'the exports after all that'),
  exchange('query-named-block-nodes', undefined, 'the nodes after all that'),
  exchange('block-export-del', { id: 'e1' }, 'end an export'),
  exchange('block-export-del', { id: 'e1' }, 'end an export again'),
  exchange('block-export-del', { id: 'e0', mode: 'maybe' }, 'end an export in no mode'),
  exchange('object-add', { 'qom-type': 'iothread', id: 'io1', 'poll-max-ns': 1000 }, 'add an iothread'),
  exchange('object-add', { 'qom-type': 'iothread', id: 'io1' }, 'add an iothread twice'),
  exchange('object-add', { 'qom-type': 'secret', id: 's1', data: 'x' }, 'add a secret'),
  exchange('object-add', { 'qom-type': 'secret', id: 's2' }, 'add a secret of nothing'),
  exchange('object-add', { 'qom-type': 'none', id: 's2' }, 'add an object of no type'),
  exchange('qom-list', { path: '/objects' }, 'the objects after that'),
  exchange('object-del', { id: 's1' }, 'delete a secret'),
  exchange('object-del', { id: 's1' }, 'delete a secret again'),
  exchange('blockdev-del', { 'node-name': 'f1' }, 'delete a node'),
  exchange('nbd-server-stop', {}, 'stop the NBD server'),
  exchange('nbd-server-stop', {}, 'stop no NBD server'),
  exchange('block-export-add', nbd('e3', 'n1'), 'export without a server'),
  exchange('blockdev-del', { 'node-name': 'f0' }, 'delete a node that was used'),
  exchange('query-block-exports', undefined, 'no exports in the end'),
];
