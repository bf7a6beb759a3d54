// The language switch leads to the same page in the other language.
for (const link of document.querySelectorAll("a[hreflang]")) {
  const page = location.pathname.match(/\/(en|zh)\/(.*)$/);
  if (page) link.href = location.href.replace(/\/(en|zh)\//, `/${link.hreflang}/`).replace(/#.*$/, "");
}
