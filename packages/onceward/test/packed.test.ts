import { execFile, execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { rolldown } from 'rolldown'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openBrowser } from './support/browser.js'
import { deferred } from './support/faultProxy.js'
import { Shop } from './support/shop.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const bin = (name: string) => join(root, 'node_modules/.bin', name)
let fresh: string
let tarball: string
let shop: Shop

const run = (command: string, args: string[], cwd = fresh) => execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
const write = (name: string, text: string) => writeFileSync(join(fresh, name), text)

beforeAll(async () => {
  shop = await Shop.open()
  fresh = mkdtempSync(join(tmpdir(), 'onceward-packed-'))
  const [packed] = JSON.parse(run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', fresh], root)) as [{ filename: string }]
  tarball = join(fresh, packed!.filename)
  write('package.json', '{"name":"fresh","private":true,"type":"module"}')
  run('npm', ['install', '--offline', '--no-audit', '--no-fund', tarball])
})
afterAll(async () => {
  await shop.close()
  rmSync(fresh, { recursive: true, force: true })
})

/** Loses an answer, so that what was installed has something to do. */
const ORDER = (how: string) => `${how}
idempotentFetch(process.argv[2] + '/orders', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"item":"tea","qty":1}' })
  .then(async (response) => console.log(response.headers.get('idempotency-outcome'), (await response.json()).item))`

async function orders(file: string, code: string, [command, ...args]: readonly string[] = [process.execPath]): Promise<string> {
  write(file, code)
  shop.front.dropResponses = 1
  const before = await shop.total()
  // Not the synchronous kind: the network that loses the answer is in this process.
  const said = await new Promise<string>((resolve, reject) =>
    execFile(command!, [...args, file, shop.url], { cwd: fresh, env: { ...process.env, DENO_DIR: join(fresh, 'deno') } }, (error, stdout) => (error ? reject(error) : resolve(stdout))))
  expect((await shop.total()) - before).toBe(1)
  return said
}

/** The module with all that it imports, as a page would be served it. */
async function bundled(file: string, platform: 'node' | 'browser'): Promise<string> {
  const built = await rolldown({ input: join(fresh, file), cwd: fresh, platform })
  const { output } = await built.generate({ format: 'esm', codeSplitting: false })
  expect(output[0].code).not.toMatch(/from ['"]onceward/)
  return output[0].code
}

test('it works as ESM in Node, and ends', async () => {
  expect(await orders('order.mjs', ORDER(`import { idempotentFetch } from 'onceward'`))).toBe('replayed tea\n')
})

test('it works by require(esm)', async () => {
  expect(await orders('order.cjs', ORDER(`const { idempotentFetch } = require('onceward')`))).toBe('replayed tea\n')
})

test('it works through a bundler', async () => {
  write('entry.js', ORDER(`import { idempotentFetch } from 'onceward'`))
  expect(await orders('bundled.mjs', await bundled('entry.js', 'node'))).toBe('replayed tea\n')
})

test('it works in a worker thread of Node, and ends', async () => {
  write('thread.mjs', ORDER(`import { idempotentFetch } from 'onceward'`))
  expect(await orders('threads.mjs', `import { Worker } from 'node:worker_threads'
new Worker(new URL('./thread.mjs', import.meta.url), { argv: process.argv.slice(2) })`)).toBe('replayed tea\n')
})

describe('in other runtimes', () => {
  const runtimes = join(root, 'test/runtimes')
  /** The one of these packages that fits this machine: npm leaves the others out. */
  const binary = (...files: string[]) => {
    const found = files.map((file) => join(runtimes, 'node_modules', file)).find((file) => existsSync(file))
    if (!found) throw new Error(`npm installed none of ${files.join(', ')} in test/runtimes`)
    return found
  }
  beforeAll(() => void run('npm', ['ci', '--prefer-offline', '--no-audit', '--no-fund'], runtimes))

  test('it works in Deno, and ends', async () => {
    const deno = binary('@deno/linux-x64-glibc/deno', '@deno/linux-arm64-glibc/deno')
    expect(await orders('deno.mjs', ORDER(`import { idempotentFetch } from 'onceward'
if (!globalThis.Deno) throw new Error('this is no Deno')`), [deno, 'run', '--no-prompt', '--allow-net'])).toBe('replayed tea\n')
  })

  test('it works in Bun, and ends', async () => {
    const bun = binary('@oven/bun-linux-x64-baseline/bin/bun', '@oven/bun-linux-aarch64/bin/bun')
    expect(await orders('bun.mjs', ORDER(`import { idempotentFetch } from 'onceward'
if (!globalThis.Bun) throw new Error('this is no Bun')`), [bun, 'run'])).toBe('replayed tea\n')
  })
})

test('it works in a Web Worker, and the next one goes on with the key of one that was ended', async () => {
  write('worker.js', `import { createIdempotentFetch } from 'onceward'
import { indexedDBStorage } from 'onceward/indexeddb'
const fetch = createIdempotentFetch({ storage: indexedDBStorage(), onWarning: (text) => postMessage(text) })
onmessage = async ({ data }) => {
  const response = await fetch('/orders', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item: data, qty: 1 }) })
  postMessage([response.headers.get('idempotency-outcome'), (await response.json()).item])
}`)
  shop.front.pages.set('/t/worker.js', { type: 'text/javascript', body: await bundled('worker.js', 'browser') })
  shop.front.pages.set('/t/worker', { type: 'text/html', body: '<!doctype html><html lang="en"><title>t</title>' })
  const browser = await openBrowser()
  try {
    const page = await browser.newPage()
    await page.goto(`${shop.url}/t/worker`)
    const begin = (item: string) => page.evaluate((item) => {
      const worker = new Worker('/t/worker.js', { type: 'module' })
      const said = new Promise((resolve, reject) => {
        worker.onmessage = ({ data }) => resolve(data)
        worker.onerror = reject
      })
      worker.postMessage(item)
      Object.assign(globalThis, { worker, said })
    }, item)
    const said = () => page.evaluate(() => (globalThis as unknown as { said: Promise<unknown> }).said)

    const before = await shop.total()
    shop.front.dropResponses = 1
    await begin('lost tea')
    expect(await said()).toEqual(['replayed', 'lost tea'])

    const held = deferred()
    shop.front.hold = held.promise
    const begun = shop.front.answers
    await begin('ended tea')
    await shop.front.answered(begun + 1)
    await page.evaluate(() => (globalThis as unknown as { worker: Worker }).worker.terminate())
    shop.front.hold = undefined
    held.open()
    await begin('ended tea')
    expect(await said()).toEqual(['replayed', 'ended tea'])
    expect((await shop.total()) - before).toBe(2)
  } finally {
    await browser.close()
  }
})

test.each([['nodenext', 'nodenext'], ['bundler', 'esnext']])('its types resolve with moduleResolution %s', (moduleResolution, module) => {
  write('use.ts', `
import { idempotentFetch, createIdempotentFetch, isOutcomeUnknownError, type LookupResult } from 'onceward'
import { indexedDBStorage } from 'onceward/indexeddb'
import { handleSubmit } from 'onceward/forms'
import { useIdempotentMutation } from 'onceward/react'
export const fetch: typeof globalThis.fetch = createIdempotentFetch({ storage: indexedDBStorage() })
export const unknown: boolean = isOutcomeUnknownError(0)
export const hook = () => useIdempotentMutation({ intent: 'a', mutationFn: async (n: number) => n }).data satisfies number | undefined
export type State = LookupResult['state']
void idempotentFetch; void handleSubmit
// @ts-expect-error the types are there, and not any
export const wrong: string = createIdempotentFetch
`)
  write('tsconfig.json', JSON.stringify({
    compilerOptions: { strict: true, noEmit: true, target: 'es2022', lib: ['es2022', 'dom', 'dom.iterable'], types: [], module, moduleResolution, skipLibCheck: false },
    files: ['use.ts'],
  }))
  expect(run(bin('tsc'), ['-p', 'tsconfig.json'])).toBe('')
})

test('publint and attw have nothing to say', () => {
  expect(run(bin('publint'), ['--strict', tarball])).toMatch(/All good/)
  // It throws where the exit code says that there are problems; what does not concern ESM is listed as ignored.
  expect(run(bin('attw'), [tarball, '--profile', 'esm-only', '--no-emoji', '--format', 'ascii'])).toMatch(/node16 \(from ESM\): OK \(ESM\)/)
})

test('it has no runtime dependency, and React is optional', () => {
  const manifest = JSON.parse(readFileSync(join(fresh, 'node_modules/onceward/package.json'), 'utf8')) as Record<string, unknown>
  expect(manifest['dependencies']).toBeUndefined()
  expect(manifest['peerDependenciesMeta']).toEqual({ react: { optional: true } })
  expect(run('npm', ['ls', '--all', '--parseable']).trim().split('\n')).toHaveLength(2)
})
