/** The tour as a program of its own: what runs inside the lab's machine. */
import { tour } from './kernel.js';

await tour({ emulated: process.env['VDUSE_QUICKSTART_EMULATED'] === '1' });
