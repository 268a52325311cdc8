/** An initramfs is a "newc" cpio archive; writing the few files needed is shorter than driving cpio(1). */
export interface CpioEntry {
  path: string;
  mode: number;
  data?: Buffer;
}

export const DIRECTORY = 0o040755;
export const EXECUTABLE = 0o100755;
export const REGULAR = 0o100644;

function pad4(length: number): Buffer {
  return Buffer.alloc((4 - (length % 4)) % 4);
}

function header(inode: number, mode: number, size: number, nameSize: number): Buffer {
  // inode, mode, uid, gid, links, mtime, size, device major/minor, rdev major/minor, name size, checksum
  const fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, nameSize, 0];
  return Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
}

export function writeCpio(entries: readonly CpioEntry[]): Buffer {
  const parts: Buffer[] = [];
  const add = (inode: number, { path, mode, data = Buffer.alloc(0) }: CpioEntry) => {
    const name = Buffer.from(`${path}\0`);
    const head = Buffer.concat([header(inode, mode, data.length, name.length), name]);
    parts.push(head, pad4(head.length), data, pad4(data.length));
  };
  entries.forEach((entry, index) => {
    add(index + 1, entry);
  });
  add(0, { path: 'TRAILER!!!', mode: 0 });
  return Buffer.concat(parts);
}
