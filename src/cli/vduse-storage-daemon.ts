#!/usr/bin/env node
import { main } from './storage-daemon/run.js';

process.exit(await main(process.argv.slice(2)));
