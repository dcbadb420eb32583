/** A request that can be sent any number of times, each time the very same bytes. */

import { sha256 } from './sha256.js'

export interface Prepared {
  /** Method, URL, headers and the rest; its body has been read. */
  readonly request: Request
  /** Without fragment. */
  readonly url: string
  readonly origin: string
  readonly body: Uint8Array<ArrayBuffer> | undefined
  readonly contentType: string | undefined
  /** Method, URL without fragment, kind and bytes of the payload: equal for the same request after a refresh. */
  readonly digest: string
}

export async function prepare(request: Request): Promise<Prepared> {
  const url = request.url.replace(/#.*/, '')
  let contentType = request.headers.get('content-type') ?? undefined
  const buffer = await request.arrayBuffer()
  let body = buffer.byteLength > 0 || contentType ? new Uint8Array(buffer) : undefined
  const boundary = /^multipart\/form-data;.*boundary="?([^";]+)/i.exec(contentType ?? '')?.[1]
  if (body && contentType && boundary) {
    // Each FormData gets a random boundary, which would make a retry after a refresh another request.
    const text = latin1(body)
    const fixed = `----onceward${sha256(bytes(text.replaceAll(boundary, ''))).slice(0, 32)}`
    body = bytes(text.replaceAll(boundary, fixed))
    contentType = contentType.replace(boundary, fixed)
  }
  const head = new TextEncoder().encode(`${request.method} ${url}\n${contentType ?? ''}\n`)
  const all = new Uint8Array(head.length + (body?.length ?? 0))
  all.set(head)
  if (body) all.set(body, head.length)
  return { request, url, origin: new URL(url).origin, body, contentType, digest: sha256(all) }
}

/** One attempt of it. */
export function attempt({ request, body, contentType }: Prepared, headers: Record<string, string | undefined>, signal: AbortSignal): Request {
  const all = new Headers(request.headers)
  for (const [name, value] of Object.entries(headers)) if (value !== undefined) all.set(name, value)
  if (contentType) all.set('content-type', contentType)
  return new Request(request, { headers: all, signal, ...(body && { body }) })
}

function latin1(body: Uint8Array): string {
  let text = ''
  // In pieces: a call takes only so many arguments.
  for (let at = 0; at < body.length; at += 0x8000) text += String.fromCharCode(...body.subarray(at, at + 0x8000))
  return text
}

function bytes(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(text, (char) => char.charCodeAt(0))
}
