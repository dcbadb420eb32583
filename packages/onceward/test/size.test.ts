import { gzipSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { chunks } from './support/bundle.js'

/** The promise is 5 kB of gzip for what a page loads with memory and web storage. */
const GZIP_BYTES_MAX = 5 * 1000
/** With what is fetched when it is needed: another tab that sends, plain `http://`, FormData. */
const GZIP_BYTES_ALL_MAX = 8 * 1000

const PAGE = `export { idempotentFetch, createIdempotentFetch } from 'onceward'`

test('what a page loads is at most 5 kB', async () => {
  const built = await chunks(PAGE, { minify: true })
  const byName = new Map(built.map((chunk) => [chunk.fileName, chunk]))
  const loaded = new Set([built.find((chunk) => chunk.isEntry)!])
  for (const chunk of loaded) for (const name of chunk.imports) loaded.add(byName.get(name)!)
  const bytes = (some: Iterable<{ code: string }>) => [...some].reduce((sum, { code }) => sum + gzipSync(code, { level: 9 }).length, 0)
  console.log(`${bytes(loaded)} bytes of gzip at the start, in ${loaded.size} files; ${bytes(built)} with all that may follow`)
  expect(bytes(loaded)).toBeLessThanOrEqual(GZIP_BYTES_MAX)
  expect(bytes(built)).toBeLessThanOrEqual(GZIP_BYTES_ALL_MAX)
})

test('nothing is loaded that nobody names', async () => {
  expect((await chunks(`import 'onceward'`, { minify: true }))[0]!.code.trim()).toBe('')
})
