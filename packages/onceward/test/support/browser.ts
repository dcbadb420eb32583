import { existsSync } from 'node:fs'
import { chromium, type Browser } from 'playwright-core'
import { bundle } from './bundle.js'
import type { Door } from './door.js'

const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium'

/** The real Chromium, told to leave the network alone. */
export async function openBrowser(): Promise<Browser> {
  if (!existsSync(CHROMIUM)) throw new Error(`${CHROMIUM} is missing: install chromium, or name one in CHROMIUM`)
  return chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
      // A page on plain `http://` that is not on localhost: no `crypto.subtle`, no `randomUUID`, no Web Locks.
      '--host-resolver-rules=MAP shop.lan 127.0.0.1'],
  })
}

/** Puts a page with this module on a door. */
export async function publish(door: Door, path: string, source: string): Promise<void> {
  door.pages.set(`${path}.js`, { type: 'text/javascript', body: await bundle(source) })
  door.pages.set(path, {
    type: 'text/html',
    body: `<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title><div id="root"></div><script type="module" src="${path}.js"></script></html>`,
  })
}
