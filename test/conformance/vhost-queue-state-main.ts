/** Asks a vhost-vdpa device where queue 0 stands: its driver's side waits for the device in the kernel, so it is a process of its own. */
import assert from 'node:assert/strict';
import { ioctl, OpenFlag, openFile } from '../../src/native/fd.js';

/** linux/vhost.h: VHOST_SET_OWNER, VHOST_GET_VRING_BASE. */
const setOwner = 0xaf01;
const getVringBase = 0xc008_af12;

const [path, index] = process.argv.slice(2);
const fd = openFile(path, OpenFlag.O_RDWR);
assert.equal(ioctl(fd, setOwner, null), 0, 'VHOST_SET_OWNER');
const argument = new Uint8Array(new ArrayBuffer(8));
const view = new DataView(argument.buffer);
view.setUint32(0, Number(index), true);
const result = ioctl(fd, getVringBase, argument);
process.stdout.write(JSON.stringify(result < 0 ? { error: result } : { base: view.getUint32(4, true) }));
