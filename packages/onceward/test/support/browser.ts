import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium, type Browser, type BrowserContext, type LaunchOptions } from 'playwright-core'
import { bundle } from './bundle.js'
import type { FaultProxy } from './faultProxy.js'

const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium'

/** The real Chromium, set up to leave the network alone. */
export const openBrowser = async (): Promise<Browser> => chromium.launch(browserOptions())

/** The same with a person's setting that no page may keep anything: cookies, storages and locks are denied. */
export async function withoutStorage(work: (context: BrowserContext) => Promise<void>): Promise<void> {
  const profile = mkdtempSync(join(tmpdir(), 'onceward-profile-'))
  mkdirSync(join(profile, 'Default'))
  writeFileSync(join(profile, 'Default/Preferences'), '{"profile":{"default_content_setting_values":{"cookies":2}}}')
  const context = await chromium.launchPersistentContext(profile, browserOptions())
  try {
    await work(context)
  } finally {
    await context.close()
    rmSync(profile, { recursive: true, force: true })
  }
}

export function browserOptions(): LaunchOptions {
  if (!existsSync(CHROMIUM)) throw new Error(`${CHROMIUM} is missing: install chromium, or name one in CHROMIUM`)
  return {
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
      // A page on plain `http://` that is not on localhost: no `crypto.subtle`, no `randomUUID`, no Web Locks.
      '--host-resolver-rules=MAP shop.lan 127.0.0.1'],
  }
}

/** Puts a page with this module on a door. */
export async function publish(door: FaultProxy, path: string, source: string): Promise<void> {
  door.pages.set(`${path}.js`, { type: 'text/javascript', body: await bundle(source) })
  door.pages.set(path, {
    type: 'text/html',
    body: `<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title><div id="root"></div><script type="module" src="${path}.js"></script></html>`,
  })
}
