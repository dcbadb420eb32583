import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { rolldown } from 'rolldown'
import { afterAll, beforeAll, expect, test } from 'vitest'
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

async function orders(file: string, code: string): Promise<string> {
  write(file, code)
  shop.front.lose = 1
  // Not the synchronous kind: the network that loses the answer is in this process.
  const { execFile } = await import('node:child_process')
  return new Promise((resolve, reject) => execFile(process.execPath, [file, shop.url], { cwd: fresh }, (error, stdout) => (error ? reject(error) : resolve(stdout))))
}

test('it works as ESM in Node, and ends', async () => {
  expect(await orders('order.mjs', ORDER(`import { idempotentFetch } from 'onceward'`))).toBe('replayed tea\n')
})

test('it works by require(esm)', async () => {
  expect(await orders('order.cjs', ORDER(`const { idempotentFetch } = require('onceward')`))).toBe('replayed tea\n')
})

test('it works through a bundler', async () => {
  write('entry.js', ORDER(`import { idempotentFetch } from 'onceward'`))
  const built = await rolldown({ input: join(fresh, 'entry.js'), cwd: fresh, platform: 'node' })
  const { output } = await built.generate({ format: 'esm', codeSplitting: false })
  expect(output[0].code).not.toMatch(/from ['"]onceward/)
  const before = await shop.total()
  expect(await orders('bundled.mjs', output[0].code)).toBe('replayed tea\n')
  expect((await shop.total()) - before).toBe(1)
})

test.each([['nodenext', 'nodenext'], ['bundler', 'esnext']])('its types resolve with moduleResolution %s', (moduleResolution, module) => {
  write('use.ts', `
import { idempotentFetch, createIdempotentFetch, isOutcomeUnknownError, type Recalled } from 'onceward'
import { indexedDBStorage } from 'onceward/indexeddb'
import { once } from 'onceward/forms'
import { useIdempotentMutation } from 'onceward/react'
export const fetch: typeof globalThis.fetch = createIdempotentFetch({ storage: indexedDBStorage() })
export const unknown: boolean = isOutcomeUnknownError(0)
export const hook = () => useIdempotentMutation({ intent: 'a', mutationFn: async (n: number) => n }).data satisfies number | undefined
export type State = Recalled['state']
void idempotentFetch; void once
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
  // It throws where the exit code says that there are problems; what is of no concern to ESM is told as ignored.
  expect(run(bin('attw'), [tarball, '--profile', 'esm-only', '--no-emoji', '--format', 'ascii'])).toMatch(/node16 \(from ESM\): OK \(ESM\)/)
})

test('it has no runtime dependency, and React is optional', () => {
  const manifest = JSON.parse(readFileSync(join(fresh, 'node_modules/onceward/package.json'), 'utf8')) as Record<string, unknown>
  expect(manifest['dependencies']).toBeUndefined()
  expect(manifest['peerDependenciesMeta']).toEqual({ react: { optional: true } })
  expect(run('npm', ['ls', '--all', '--parseable']).trim().split('\n')).toHaveLength(2)
})
