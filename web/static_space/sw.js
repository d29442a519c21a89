/**
 * Keeps the page's files, so that it opens without a network; the model's graphs are kept by the module.
 *
 * With a network each file is asked for anew, which costs little where it has not changed, so that a new version of
 * the page is never mixed with an old one.
 */

const CACHE = "melody-space"

self.addEventListener("install", (event) => {
  const keep = async () => {
    const answer = await fetch("files.json")
    const { files } = await answer.json()
    const cache = await caches.open(CACHE)
    await cache.addAll([".", "files.json", ...files])
  }
  event.waitUntil(keep().then(() => self.skipWaiting()))
})

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()))

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request
  const isOwn = url.startsWith(self.registration.scope)
  if (method !== "GET" || !isOwn || url.slice(self.registration.scope.length).startsWith("model/")) return
  event.respondWith(answer(event.request))
})

async function answer(request) {
  const cache = await caches.open(CACHE)
  try {
    const fresh = await fetch(request)
    if (fresh.status === 200) cache.put(request, fresh.clone()).catch(() => {}) // the disk may be full
    return fresh
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true })
    if (kept) return kept
    throw error
  }
}
