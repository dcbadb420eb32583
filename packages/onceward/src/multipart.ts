import { digest, encode } from './digest.js'

/**
 * Replaces the random boundary of FormData, which would make a retry after a refresh another request. Writes one into
 * `body` that the rest of its bytes determine, of the same length, and returns it.
 */
export async function fixBoundary(body: Uint8Array<ArrayBuffer>, boundary: string): Promise<string> {
  const mark = encode(boundary)
  const places: number[] = []
  for (let at = body.indexOf(mark[0]!); at >= 0; at = body.indexOf(mark[0]!, at + 1)) {
    if (mark.every((byte, i) => body[at + i] === byte)) places.push(at)
  }
  const write = (bytes: Uint8Array) => places.forEach((at) => body.set(bytes, at))
  write(new Uint8Array(mark.length))
  const fixed = (await digest(body)).padStart(mark.length, '-').slice(-mark.length)
  write(encode(fixed))
  return fixed
}
