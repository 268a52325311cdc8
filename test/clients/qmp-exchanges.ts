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

function throttling(): Exchange[] {
  const path = '/objects/t0';
  const limits = (value: unknown, name: string): Exchange =>
    exchange('qom-set', { path, property: 'limits', value }, `qom-set of limits: ${name}`);
  const get = (property: string, name: string): Exchange => exchange('qom-get', { path, property }, name);
  const set = (args: object, name: string): Exchange => exchange('qom-set', args, `qom-set: ${name}`);
  return [
    exchange(
      'object-add',
      { 'qom-type': 'throttle-group', id: 't0', limits: { 'iops-total': 100, 'iops-total-max': 200 } },
      'add a throttle group',
    ),
    exchange('qom-list', { path }, 'qom-list of a throttle group'),
    get('limits', 'the limits of a throttle group'),
    limits({ 'bps-total': 5000 }, 'one more'),
    get('limits', 'the limits after one more'),
    get('x-bps-total', 'a limit by its older name'),
    limits({ 'iops-total': 0 }, 'a burst without a rate'),
    limits({ 'iops-totl': 70 }, 'one that is not known'),
    limits(7, 'a number'),
    limits(null, 'nothing'),
    limits({ 'iops-total': 'x' }, 'a word'),
    limits({ 'iops-total': -70 }, 'less than nothing'),
    limits({ 'iops-read': 70 }, 'total and read'),
    limits({}, 'none'),
    get('limits', 'the limits after all that'),
    set({ path, property: 'x-iops-total', value: 50 }, 'a limit by its older name'),
    set({ path, property: 'x-zz', value: 50 }, 'no property'),
    set({ path, property: 'type', value: 'x' }, 'a type'),
    set({ path, property: 'limits' }, 'no value'),
    set({ path, value: 1 }, 'no property named'),
    set({ path: '/objects/zz', property: 'limits', value: {} }, 'no object'),
    set({ path: '/objects', property: 't0', value: {} }, 'a child'),
    set({ path: 't0', property: 'limits', value: { 'bps-total': 1 } }, 'the end of a path'),
    exchange(
      'qom-get',
      { path: 'objects/t0', property: 'x-bps-total' },
      'qom-get with a path without its start',
    ),
    exchange('object-del', { id: 't0' }, 'delete a throttle group'),
  ];
}

function authorization(): Exchange[] {
  const get = (id: string, property: string, name = ''): Exchange =>
    exchange('qom-get', { path: `/objects/${id}`, property }, `qom-get of ${property}${name}`);
  const set = (id: string, property: string, value: unknown, name: string): Exchange =>
    exchange('qom-set', { path: `/objects/${id}`, property, value }, `qom-set of ${property}: ${name}`);
  return [
    exchange('qom-list', { path: '/objects/a0' }, 'qom-list of authz-simple'),
    exchange('qom-list', { path: '/objects/a1' }, 'qom-list of authz-list'),
    get('a0', 'identity'),
    set('a0', 'identity', 'CN=y', 'another'),
    set('a0', 'identity', 7, 'a number'),
    get('a0', 'identity', ' after that'),
    get('a1', 'policy'),
    get('a1', 'rules'),
    set('a1', 'policy', 'allow', 'another'),
    set('a1', 'policy', 'maybe', 'one that is none'),
    set('a1', 'rules', [{ match: 'q', policy: 'deny' }], 'others'),
    set('a1', 'rules', 'x', 'a word'),
    get('a1', 'policy', ' after that'),
  ];
}

function characterDevices(): Exchange[] {
  const socket = (path: string, more: object = {}): object => ({
    type: 'socket',
    data: { addr: { type: 'unix', data: { path } }, ...more },
  });
  const add = (id: string, backend: unknown, name: string): Exchange =>
    exchange('chardev-add', { id, backend }, `chardev-add: ${name}`);
  const listen = { server: true, wait: false };
  return [
    add('c0', socket('c0.sock', listen), 'a socket'),
    add('c0', { type: 'null', data: {} }, 'an id twice'),
    add('c1', { type: 'null', data: {} }, 'nothing'),
    add('9', socket('c9.sock'), 'by its defaults, and an id that is none'),
    add('c2', { type: 'zz', data: {} }, 'a type that is not known'),
    add('c2', socket('c2.sock', { server: false }), 'a client of nobody'),
    add('c2', socket('c2.sock', { server: false, wait: false }), 'a client that waits'),
    add('c2', socket('c2.sock', { ...listen, reconnect: 1 }), 'a server that reconnects'),
    add('c2', socket('c2.sock', { srver: true }), 'a member that is not known'),
    add('c2', socket('c2.sock', { server: 'x' }), 'a member of a wrong type'),
    add('c2', socket('nowhere/c2.sock', listen), 'a socket in no folder'),
    add('c2', { type: 'socket', data: { server: true } }, 'no address'),
    add('c2', { type: 'null' }, 'no data'),
    add('c2', 7, 'a number'),
    exchange('query-chardev', undefined, 'query-chardev after that'),
    exchange('qom-list', { path: '/chardevs' }, 'qom-list of the devices after that'),
    exchange('chardev-remove', { id: 'c0' }, 'chardev-remove'),
    exchange('chardev-remove', { id: 'c0' }, 'chardev-remove again'),
    exchange('chardev-remove', { id: 'mon' }, 'chardev-remove of the one in use'),
    exchange('chardev-remove', {}, 'chardev-remove of none'),
    add('c0', socket('c0.sock', listen), 'a socket again'),
    exchange('query-chardev', undefined, 'query-chardev in the end'),
  ];
}

function tls(): Exchange[] {
  const start = (more: object, name: string): Exchange =>
    exchange(
      'nbd-server-start',
      { addr: { type: 'unix', data: { path: 'tls.sock' } }, ...more },
      `TLS: ${name}`,
    );
  return [
    exchange('nbd-server-stop', {}, 'stop the server for another one'),
    start({ 'tls-creds': 'zz' }, 'no credentials'),
    start({ 'tls-creds': 'io0' }, 'an iothread for credentials'),
    exchange('object-add', { 'qom-type': 'authz-simple', id: 'a0' }, 'authz-simple of nobody'),
    exchange('object-add', { 'qom-type': 'authz-simple', id: 'a0', identity: 'CN=x' }, 'authz-simple'),
    exchange(
      'object-add',
      { 'qom-type': 'authz-list', id: 'a1', rules: [{ match: 'x' }] },
      'a rule without a policy',
    ),
    exchange('object-add', { 'qom-type': 'authz-list', id: 'a1', policy: 'maybe' }, 'a policy that is none'),
    exchange(
      'object-add',
      { 'qom-type': 'authz-list', id: 'a1', rules: [{ match: '*', policy: 'allow', format: 'glob' }] },
      'authz-list',
    ),
    exchange('object-add', { 'qom-type': 'authz-pam', id: 'a2' }, 'authz-pam without a service'),
    exchange('object-add', { 'qom-type': 'authz-pam', id: 'a2', service: 'x' }, 'authz-pam'),
    exchange(
      'object-add',
      { 'qom-type': 'tls-creds-x509', id: 'x0', endpoint: 'server' },
      'credentials without a folder',
    ),
    start({ 'tls-creds': 'a0' }, 'a list for credentials'),
    exchange('qom-list', { path: '/objects' }, 'the objects of TLS'),
    ...authorization(),
    exchange('object-del', { id: 'a0' }, 'delete authz-simple'),
    start({}, 'none at last'),
  ];
}

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
  ...throttling(),
  ...characterDevices(),
  ...tls(),
  exchange('blockdev-del', { 'node-name': 'f1' }, 'delete a node'),
  exchange('nbd-server-stop', {}, 'stop the NBD server'),
  exchange('nbd-server-stop', {}, 'stop no NBD server'),
  exchange('block-export-add', nbd('e3', 'n1'), 'export without a server'),
  exchange('blockdev-del', { 'node-name': 'f0' }, 'delete a node that was used'),
  exchange('query-block-exports', undefined, 'no exports in the end'),
];
