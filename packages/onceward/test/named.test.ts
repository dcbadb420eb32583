/** Named intents, content, and what a caller learns: over the real gateway, with plain `fetch` as the control. */
import { spawn, execFileSync, type ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type RequestListener } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  CanonicalError, canonical, createIdempotentFetch, forget, isNotSentError, isOncewardError, isOutcomeUnknownError, isPayloadChangedError, lookup,
  memoryStorage, Mutation, newKey, type Attempt, type MutationOptions, type Options, type PayloadChangedError,
} from '../src/index.js'
import { contentOf } from '../src/content.js'
import { deferred } from './support/faultProxy.js'
import { Shop } from './support/shop.js'

let shop: Shop
beforeAll(async () => { shop = await Shop.open() })
afterAll(() => shop.close())

const client = (options: Options = {}) => createIdempotentFetch({ onWarning: () => undefined, ...options })
let names = 0
const newName = () => `checkout:${++names}`
/** An order whose content differs at each call, as with a time stamp. */
let stamps = 0
const order = (item: string, fields: object = {}) => ({
  method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ item: `${new Date(++stamps).toISOString()} ${item}`, qty: 1, ...fields }),
})
const at = (path = '/orders') => shop.url + path
const caught = (promise: Promise<unknown>) => promise.then(() => undefined, (error: unknown) => error)
async function made(work: () => Promise<unknown>): Promise<number> {
  const before = await shop.total()
  await work()
  return (await shop.total()) - before
}
async function beside(listener: RequestListener, work: (url: string) => Promise<void>): Promise<void> {
  const server = createServer(listener)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  try {
    await work(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  } finally {
    server.closeAllConnections()
    server.close()
  }
}
const lostFirst = async (intent: string, options: Options, what = order('tea')) => {
  shop.front.dropResponses = 100
  expect(isOutcomeUnknownError(await caught(client({ deadline: 300, ...options })(at(), { ...what, intent })))).toBe(true)
  shop.front.dropResponses = 0
  return what
}

describe('named_intent', () => {
  test('plain_fetch_with_a_new_key_per_press_orders_twice', async () => {
    // The control: what a page does without the name.
    expect(await made(async () => {
      for (const _ of [1, 2]) await fetch(at(), { ...order('tea'), headers: { 'content-type': 'application/json', 'idempotency-key': newKey() } })
    })).toBe(2)
  })

  test('changed_content_after_end_goes_out_under_the_same_key_and_brings_the_first_response', async () => {
    const send = client()
    const intent = newName()
    let error: unknown
    expect(await made(async () => {
      await send(at(), { ...order('tea'), intent })
      error = await caught(send(at(), { ...order('tea'), intent }))
    })).toBe(1)
    expect(error).toSatisfy(isPayloadChangedError)
    const { executed, first, volatileFields, message } = error as PayloadChangedError
    expect(executed).toBe('yes')
    expect(volatileFields).toEqual(['item'])
    expect(message).toMatch(/different at each send: item.*Name another intent/)
    expect(first.state === 'answered' && ((await first.response.json()) as object)).toMatchObject({ item: expect.stringMatching(/ tea$/) as string, id: expect.any(Number) as number })
    const keys = shop.front.seen.filter(({ method }) => method === 'POST').slice(-2).map(({ headers }) => headers['idempotency-key'])
    expect(new Set(keys).size).toBe(1)
  })

  test('changed_content_while_open_is_one_order', async () => {
    const storage = memoryStorage()
    const intent = newName()
    expect(await made(async () => {
      await lostFirst(intent, { storage })
      expect(await caught(client({ storage })(at(), { ...order('tea'), intent }))).toMatchObject({ name: 'PayloadChangedError', executed: 'yes', first: { state: 'answered' } })
    })).toBe(1)
  })

  test('changed_content_while_in_flight_waits_and_is_one_order', async () => {
    const send = client()
    const intent = newName()
    expect(await made(async () => {
      const [first, second] = await Promise.all([send(at(), { ...order('tea'), intent }), caught(send(at(), { ...order('tea'), intent }))])
      expect(first.status).toBe(201)
      expect(second).toMatchObject({ name: 'PayloadChangedError', executed: 'yes' })
    })).toBe(1)
  })

  test('changed_content_that_the_server_never_saw_is_executed_under_the_same_key', async () => {
    const storage = memoryStorage()
    const intent = newName()
    expect(await made(async () => {
      // Nobody listens there.
      expect(await caught(client({ storage, deadline: 300 })('http://127.0.0.1:1/orders', { ...order('tea'), intent }))).toSatisfy(isOncewardError)
      const response = await client({ storage })(at(), { ...order('coffee'), intent })
      expect([response.headers.get('idempotency-outcome'), ((await response.json()) as { item: string }).item.slice(25)]).toEqual(['stored', 'coffee'])
    })).toBe(1)
    const stored = JSON.parse((await storage.get((await storage.names())[0]!))!) as { key: string }
    expect(shop.front.seen.at(-1)!.headers['idempotency-key']).toBe(JSON.stringify(stored.key))
  })

  test('same_payload_with_other_bytes_gets_the_first_response', async () => {
    const storage = memoryStorage()
    const intent = newName()
    expect(await made(async () => {
      const send = client({ storage })
      const [one, two] = [await send(at(), { ...order('tea'), intent, payload: 'tea' }), await client({ storage })(at(), { ...order('tea'), intent, payload: 'tea' })]
      expect(await two.json()).toEqual(await one.json())
    })).toBe(1)
  })

  test('equal_content_after_end_is_replayed_for_a_day_and_forget_frees_the_name', async () => {
    const storage = memoryStorage()
    const intent = newName()
    const what = order('tea')
    expect(await made(async () => {
      const one = await client({ storage })(at(), { ...what, intent })
      const two = await client({ storage })(at(), { ...what, intent })
      expect(two.headers.get('idempotency-outcome')).toBe('replayed')
      expect(await two.json()).toEqual(await one.json())
    })).toBe(1)
    // Its end was more than a day ago.
    const [name] = await storage.names()
    const entry = JSON.parse((await storage.get(name!))!) as { end: number }
    await storage.set(name!, JSON.stringify({ ...entry, end: entry.end - 24 * 60 * 60 * 1000 - 1 }))
    expect(await made(() => client({ storage })(at(), { ...order('tea'), intent }))).toBe(1)
    await forget(client({ storage }), intent)
    expect(await made(() => client({ storage })(at(), { ...order('tea'), intent }))).toBe(1)
  })

  test('repeatable_name_is_free_after_its_end', async () => {
    const send = client()
    const intent = newName()
    expect(await made(async () => {
      for (const _ of [1, 2]) expect((await send(at(), { ...order('tea'), intent, repeatable: true })).status).toBe(201)
    })).toBe(2)
  })

  test('entry_of_an_older_version_is_read', async () => {
    const storage = memoryStorage()
    const intent = newName()
    const what = await lostFirst(intent, { storage })
    const [name] = await storage.names()
    const { digest, ...entry } = JSON.parse((await storage.get(name!))!) as { digest: string }
    await storage.remove(name!)
    await storage.set(`${name}${digest}`, JSON.stringify({ ...entry, digest }))
    expect(await made(async () => {
      expect((await client({ storage })(at(), { ...what, intent })).headers.get('idempotency-outcome')).toBe('replayed')
    })).toBe(0)
  })

  test('name_at_a_server_without_keys_is_not_sent_twice', async () => {
    const plain = await shop.plain()
    try {
      const send = client()
      const intent = newName()
      expect(await made(async () => {
        await send(`${plain.url}/orders`, { ...order('tea'), intent })
        expect(await caught(send(`${plain.url}/orders`, { ...order('tea'), intent }))).toSatisfy(isOncewardError)
      })).toBe(1)
    } finally {
      await plain.close()
    }
  })
})

describe('mutation', () => {
  const mutation = <V>(more: Partial<MutationOptions<{ id: number }, V>> = {}) =>
    new Mutation<{ id: number }, V>({ fetch: client(), mutationFn: (cart, { json }) => json(at(), cart), ...more })
  test('end_that_no_observer_had_is_kept_and_the_next_press_gets_it', async () => {
    const send = client()
    const cart = { item: `tea ${++stamps}`, qty: 1 }
    expect(await made(async () => {
      const open = deferred()
      shop.front.hold = open.promise
      const begun = shop.front.answers
      // A dialog that is closed in flight.
      const first = mutation<object>({ fetch: send })
      const close = first.subscribe(() => undefined)
      first.dispatch(cart)
      await shop.front.answered(begun + 1)
      close()
      shop.front.hold = undefined
      open.open()
      await expect.poll(() => first.get().status).toBe('success')
      // Opened again.
      const second = mutation<object>({ fetch: send })
      expect(await second.mutate(cart)).toMatchObject({ id: expect.any(Number) as number })
      // That was delivered: an equal order is another from here on.
    })).toBe(1)
    expect(await made(() => mutation<object>({ fetch: send }).mutate(cart))).toBe(1)
  })

  test('three_blobs_of_equal_size_are_three_orders_each_with_its_own_response', async () => {
    const it = mutation<Blob>({ mutationFn: async (chunk, { json }) => json(at(), { item: (await chunk.text()).slice(0, 8), qty: 1 }) })
    const chunks = ['a', 'b', 'c'].map((letter) => new Blob([letter.repeat(1000)]))
    let all: { id: number }[] = []
    expect(await made(async () => { all = await Promise.all(chunks.map((chunk) => it.mutate(chunk))) })).toBe(3)
    expect(all.map((it) => (it as unknown as { item: string }).item)).toEqual(['aaaaaaaa', 'bbbbbbbb', 'cccccccc'])
  })

  test('form_with_an_empty_file_is_one_order_at_a_double_press', async () => {
    const it = mutation<FormData>({ mutationFn: (form, { json }) => json(at(), { item: form.get('item'), qty: 1 }) })
    const form = (lastModified: number) => {
      const data = new FormData()
      data.set('item', `tea ${stamps}`)
      data.set('receipt', new File([], '', { type: 'application/octet-stream', lastModified }))
      return data
    }
    expect(await made(() => Promise.all([it.mutate(form(1)), it.mutate(form(2))]))).toBe(1)
  })

  test('content_is_compared_by_bytes_and_what_cannot_be_read_equals_only_itself', async () => {
    const text = async (value: unknown) => contentOf(value)
    const large = (last: string) => new Blob(['x'.repeat(3 << 20), last])
    expect(await text(large('a'))).toBe(await text(large('a')))
    expect(await text(large('a'))).not.toBe(await text(large('b')))
    expect(await text(new File(['a'], 'a', { lastModified: 1 }))).toBe(await text(new File(['a'], 'a', { lastModified: 2 })))
    const stream = () => new Blob(['a']).stream()
    const one = stream()
    expect(await text([one])).toBe(await text([one]))
    expect(await text(stream())).not.toBe(await text(stream()))
    expect(await text(() => 1)).not.toBe(await text(() => 1))
    for (const [a, b] of [[1n, '1n'], [NaN, null], [[], new Set()], [new Map([['a', 1]]), { a: 1 }], [{ a: 1 }, { a: '1' }]]) expect(await text(a)).not.toBe(await text(b))
    expect(await text({ b: 1, a: undefined, c: [2] })).toBe(await text({ c: [2], b: 1 }))
  })

  test('progress_of_a_server_that_is_down_names_what_is_waited_for_and_ends_early', async () => {
    const it = new Mutation<unknown, object>({ fetch: client(), mutationFn: (cart, { json }) => json('http://127.0.0.1:1/orders', cart) })
    const states: unknown[] = []
    it.subscribe(() => states.push(it.get()))
    const before = Date.now()
    const error = await caught(it.mutate({ item: 'tea' }))
    expect(Date.now() - before).toBeLessThan(40_000)
    expect(error).toMatchObject({ name: 'OutcomeUnknownError', message: expect.stringMatching(/127\.0\.0\.1:1 never responded: it is down/) as string })
    expect(states).toContainEqual(expect.objectContaining({ status: 'pending', attempts: 1, waitingFor: 'first-response', isPaused: false, failureReason: null }))
  })

  test('progress_of_a_lost_response_counts_attempts_and_names_the_failure', async () => {
    await fetch(at()) // the origin responds
    const it = mutation<object>()
    const states: unknown[] = []
    it.subscribe(() => states.push(it.get()))
    await client()(at(), order('known'))
    shop.front.dropResponses = 1
    await it.mutate({ item: `tea ${++stamps}`, qty: 1 })
    expect(states).toContainEqual(expect.objectContaining({ status: 'pending', attempts: 2, waitingFor: 'network', failureReason: expect.any(Error) as Error }))
    expect(it.get()).toMatchObject({ status: 'success', failureReason: null })
  })

  test('callbacks_are_called_as_in_tanstack_query', async () => {
    const calls: unknown[] = []
    const log = (name: string) => (...values: unknown[]) => void calls.push([name, ...values.map((it) => (it instanceof Error ? it.message : typeof it === 'object' && it && 'id' in it ? 'data' : it))])
    const it = mutation<object>({ onSuccess: log('success'), onError: log('error'), onSettled: log('settled') })
    it.subscribe(() => undefined)
    const cart = { item: `tea ${++stamps}`, qty: 1 }
    await it.mutate(cart, { onSuccess: log('own success'), onSettled: log('own settled') })
    await expect.poll(() => calls).toEqual([['success', 'data', cart], ['settled', 'data', null, cart], ['own success', 'data', cart], ['own settled', 'data', null, cart]])
    calls.length = 0
    await caught(it.mutate({ item: 'no quantity' } as object))
    await expect.poll(() => calls.map((it) => (it as unknown[])[0])).toEqual(['error', 'settled'])
  })

  test('json_rejects_a_response_that_is_not_ok', async () => {
    // FastAPI and Express word an error their own way; neither is data.
    await beside((_, outgoing) => void outgoing.writeHead(422, { 'content-type': 'application/json' }).end('{"detail":[{"loc":["body","qty"]}]}'), async (url) => {
      const it = new Mutation<unknown, object>({ fetch: client(), mutationFn: (cart, { json }) => json(url, cart) })
      expect(await caught(it.mutate({}))).toMatchObject({ message: 'the service returned 422' })
      expect(it.get().status).toBe('error')
    })
  })
})

describe('request', () => {
  test('lower_case_patch_is_sent_as_PATCH_with_a_key', async () => {
    const seen: unknown[] = []
    await beside(({ method, headers }, outgoing) => {
      seen.push([method, headers['idempotency-key'] !== undefined])
      outgoing.end()
    }, async (url) => {
      await client()(url, { method: 'patch', body: 'a' })
      await client()(new Request(url, { method: 'patch', body: 'a' }))
      // The control: as typed.
      await fetch(url, { method: 'patch', body: 'a' }).catch(() => undefined)
    })
    expect(seen.slice(0, 2)).toEqual([['PATCH', true], ['PATCH', true]])
    expect(seen.slice(2)).not.toContainEqual(['PATCH', expect.anything()])
  })

  test('headers_option_is_on_every_request_and_lookup_asks_the_origin_that_was_sent_to', async () => {
    const storage = memoryStorage()
    const intent = newName()
    let token = 0
    const options: Options = { storage, headers: () => ({ authorization: `Bearer ${++token}`, 'x-own': 'default' }) }
    const seen: [string | undefined, string | undefined, string | undefined, unknown][] = []
    await beside((incoming, outgoing) => {
      const { method, url, headers } = incoming
      seen.push([method, url, headers.authorization, headers['x-own']])
      if (method === 'POST') return void incoming.resume().on('end', () => outgoing.destroy())
      outgoing.writeHead(404, { 'content-type': 'application/problem+json', 'idempotency-outcome': 'released' }).end('{"detail":"sending is safe","code":"operation_unknown","executed":"unknown","retry":"same-key"}')
    }, async (url) => {
      const what = { method: 'POST', body: 'tea', headers: { 'x-own': 'own' }, intent }
      await caught(client({ ...options, honoured: true, deadline: 300 })(`${url}/orders`, what))
      // No `endpoints`, no page: it asks where it was sent; and a 404 says nothing about other callers.
      expect(await lookup(client(options), intent)).toEqual({ state: 'interrupted', executed: 'unknown', problem: undefined })
    })
    expect(seen[0]).toEqual(['POST', '/orders', 'Bearer 1', 'own'])
    expect(seen.at(-1)).toEqual(['GET', '/.idempotency/operation', expect.stringMatching(/^Bearer \d+$/), 'default'])
  })

  test('html_policy_page_warns_with_the_fix_and_is_asked_for_once', async () => {
    const warnings: string[] = []
    const seen: string[] = []
    await beside((incoming, outgoing) => {
      seen.push(`${incoming.method} ${incoming.url}`)
      if (incoming.method === 'POST') return void incoming.resume().on('end', () => outgoing.destroy())
      outgoing.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><div id="root"></div>')
    }, async (url) => {
      const send = client({ onWarning: (text) => warnings.push(text) })
      for (const _ of [1, 2]) expect(isOutcomeUnknownError(await caught(send(`${url}/orders`, { method: 'POST', body: 'tea' })))).toBe(true)
    })
    expect(warnings).toEqual([expect.stringMatching(/policy is HTML: proxy \/\.idempotency to the gateway/)])
    expect(seen).toEqual(['POST /orders', 'GET /.idempotency/policy'])
  })

  test('deadline_that_was_slept_over_asks_once_more', async () => {
    const attempts: Attempt[] = []
    const what = order('tea')
    expect(await made(async () => {
      shop.front.dropResponses = 1
      const send = client({
        deadline: 1000,
        onAttempt: (attempt) => {
          // The process stands still, as on a machine that is suspended.
          if (attempts.push(attempt) === 1) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4000)
        },
      })
      expect((await send(at(), what)).headers.get('idempotency-outcome')).toBe('replayed')
    })).toBe(1)
    expect(attempts.map(({ isStatusQuery }) => isStatusQuery)).toEqual([false, true])
  })

  test('canonical_error_is_an_onceward_error_of_nothing_sent', () => {
    let error: unknown
    try { canonical({ at: undefined }) } catch (thrown) { error = thrown }
    expect(error).toBeInstanceOf(CanonicalError)
    expect(error).toSatisfy(isOncewardError)
    expect(error).toMatchObject({ executed: 'no', path: 'at' })
  })

  test.each([
    ['delete AbortSignal.prototype.throwIfAborted; delete globalThis.DOMException', '201'],
    ['Object.defineProperty(AbortSignal.prototype, "reason", { value: undefined })', '201'],
    ['Object.defineProperty(globalThis, "crypto", { value: undefined })', "crypto.getRandomValues is missing: import 'react-native-get-random-values' before onceward"],
  ])('missing_global_works_or_is_named: %s', async (remove, expected) => {
    // The built package in a process of its own, as in a runtime without that global.
    const code = `${remove}; const { idempotentFetch } = await import('${new URL('../dist/index.js', import.meta.url).href}')
idempotentFetch('${at()}', ${JSON.stringify(order('tea'))}).then(({ status }) => console.log(status), ({ message }) => console.log(message))`
    const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'pipe', 'inherit'] })
    let output = ''
    child.stdout.on('data', (chunk: Buffer) => { output += chunk.toString() })
    await new Promise((resolve) => child.once('exit', resolve))
    expect(output).toBe(`${expected}\n`)
  })

  test('not_sent_error_has_executed_no', async () => {
    const { derivedKeys } = await import('../src/index.js')
    expect(await caught(client({ keys: derivedKeys() })(at(), { method: 'POST', body: 'a=1' }))).toSatisfy(isNotSentError)
  })
})

describe('redirect', () => {
  let nginx: ChildProcess
  const directory = mkdtempSync(join(tmpdir(), 'onceward-nginx-'))
  let url: string
  beforeAll(async () => {
    const port = await new Promise<number>((resolve) => {
      const server = createServer().listen(0, '127.0.0.1', () => {
        const { port } = server.address() as AddressInfo
        server.close(() => resolve(port))
      })
    })
    url = `http://127.0.0.1:${port}`
    execFileSync('mkdir', ['-p', join(directory, 'logs')])
    writeFileSync(join(directory, 'nginx.conf'), `daemon off; pid ${directory}/pid; error_log stderr; events {}
http { access_log off; client_body_temp_path ${directory}/body; proxy_temp_path ${directory}/proxy; fastcgi_temp_path ${directory}/f; uwsgi_temp_path ${directory}/u; scgi_temp_path ${directory}/s;
server { listen 127.0.0.1:${port};
location = /shop { return 308 $scheme://$http_host/shop/; } location = /moved { return 307 /shop/; }
location = /shop/ { proxy_pass ${shop.url}/orders; proxy_set_header Host $http_host; }
location / { proxy_pass ${shop.url}; proxy_set_header Host $http_host; } } }`)
    nginx = spawn('nginx', ['-p', directory, '-c', join(directory, 'nginx.conf')], { stdio: 'ignore' })
    const isOpen = () => new Promise<boolean>((resolve) => {
      const socket = connect(port, '127.0.0.1', () => (socket.destroy(), resolve(true))).on('error', () => resolve(false))
    })
    while (!(await isOpen())) await new Promise((resolve) => setTimeout(resolve, 20))
  })
  afterAll(() => {
    nginx?.kill()
    rmSync(directory, { recursive: true, force: true })
  })

  test.each([['/shop'], ['/moved']])('of_nginx_at_%s_keeps_the_body_and_is_one_order_in_node', async (path) => {
    expect(await made(async () => {
      shop.front.dropResponses = 1
      const response = await client()(`${url}${path}`, order('redirected tea'))
      expect([response.status, ((await response.json()) as { item: string }).item.slice(25)]).toEqual([201, 'redirected tea'])
    })).toBe(1)
    // The control: plain fetch follows too.
    expect((await fetch(`${url}${path}`, { ...order('plain tea') })).status).toBe(201)
  })

  test.each([['text', () => 'tea'], ['form', () => { const data = new FormData(); data.set('item', 'tea'); return data }], ['blob', () => new Blob(['tea'])]])('of_a_%s_body_keeps_its_bytes_in_node', async (_, body) => {
    let last = 0
    await beside((incoming, outgoing) => {
      if (incoming.url === '/a') return void incoming.resume().on('end', () => outgoing.writeHead(308, { location: '/a/' }).end())
      incoming.on('data', (chunk: Buffer) => { last += chunk.length }).on('end', () => outgoing.end('ok'))
    }, async (url) => {
      expect(await (await client()(`${url}/a`, { method: 'POST', body: body() })).text()).toBe('ok')
    })
    expect(last).toBeGreaterThan(2)
  })
})
